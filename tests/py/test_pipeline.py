"""What the pipeline promises beyond the tool's face: the same bytes for any thread count and memory
budget, FP8 inputs, gates that raise layers one by one, errors that name the tensor and lose nothing."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def run(aq, *arguments, **options):
    return subprocess.run([str(aq), *map(str, arguments)], capture_output=True, text=True,
                          timeout=120, **options)


def quantize(aq, model, out, *flags):
    done = run(aq, "quantize", model, out, "--json", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def report_of(folder):
    report = json.loads((Path(folder) / "arrowquant_report.json").read_text())
    return {t["name"]: t for t in report["tensors"]}


def names_in(path):
    """The tensors of a file; NumPy has no FP8, so the header is read by hand."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return set(header) - {"__metadata__"}


def make_model(folder, tensors, config=None, metadata=None):
    folder.mkdir(parents=True)
    save_file(tensors, str(folder / "model.safetensors"), metadata=metadata)
    (folder / "config.json").write_text(json.dumps(config or {"architectures": ["TinyForCausalLM"]}))
    return folder


def raw_safetensors(path, entries):
    """entries: {name: (dtype, shape, bytes)}; for the dtypes that NumPy lacks."""
    header, offset = {}, 0
    for name, (dtype, shape, data) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(e[2] for e in entries.values()))


def e4m3_table():
    """The 256 values of F8_E4M3 (the kind without infinity)."""
    table = np.zeros(256)
    for code in range(256):
        exponent, mantissa = code >> 3 & 15, code & 7
        value = (mantissa / 8 * 2.0 ** -6 if exponent == 0
                 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))
        if exponent == 15 and mantissa == 7:
            value = np.nan
        table[code] = -value if code & 128 else value
    return table


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Several blocks a tensor, odd widths, a conv, a constant and a tiny tensor."""
    rng = np.random.default_rng(5)
    normal = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    return make_model(tmp_path_factory.mktemp("wide") / "model", {
        "blocks.0.a.weight": normal(1500, 1000), "blocks.0.b.weight": normal(333, 777) * 3,
        "blocks.0.a.bias": normal(1500), "blocks.1.conv.weight": normal(64, 32, 3, 3),
        "blocks.1.long.weight": normal(3, 300001), "blocks.1.half.weight": normal(70, 64).astype(np.float16),
        "blocks.2.constant.weight": np.full((40, 256), 0.25, np.float32),
        "blocks.2.small.weight": normal(64, 64) * 1e-7, "ids": np.arange(12).reshape(3, 4)})


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("parameter_bits", [16, 8])
def test_same_bytes_for_any_threads_and_budget(aq, wide, tmp_path, bits, parameter_bits):
    flags = ["--bits", bits, "--parameter-bits", parameter_bits, "--min-accuracy", 0]
    quantize(aq, wide, tmp_path / "one", *flags, "--threads", 1)
    reference = files_of(tmp_path / "one")
    for number, more in enumerate([["--threads", 2], ["--threads", 7], ["--threads", 3, "--streaming"],
                                   ["--max-memory", 20]]):
        quantize(aq, wide, tmp_path / str(number), *flags, *more)
        assert files_of(tmp_path / str(number)) == reference


def test_parameters_get_wider_where_they_must(aq, wide, tmp_path):
    quantize(aq, wide, tmp_path / "out", "--bits", 4, "--parameter-bits", 8)
    report = report_of(tmp_path / "out")
    assert report["blocks.0.a.weight"]["params"] == "Q8"
    assert report["blocks.2.constant.weight"]["params"] == "F16"
    assert report["blocks.2.small.weight"]["params"] == "F32"
    assert report["blocks.2.constant.weight"]["sqnr_db"] is None  # exact
    assert report["blocks.2.small.weight"]["cosine_similarity"] > 0.99


@pytest.mark.parametrize("bits, folded", [(4, True), (8, False)])  # 8 bits would gain nothing: kept
def test_fp8_with_each_kind_of_scale(aq, tmp_path, bits, folded):
    table = e4m3_table()
    rng = np.random.default_rng(6)
    rows, cols = 256, 384
    codes = rng.integers(0, 256, (rows, cols)).astype(np.uint8)
    codes[np.isnan(table[codes])] = 0
    values = table[codes]
    f32 = lambda a: np.ascontiguousarray(a, np.float32).tobytes()
    one, per_row = np.array([0.5]), rng.uniform(0.1, 2, rows)
    blocks = rng.uniform(0.1, 2, (2, 3))
    folder = tmp_path / "fp8"
    folder.mkdir()
    raw_safetensors(folder / "model.safetensors", {
        "a.one.weight": ("F8_E4M3", [rows, cols], codes.tobytes()),
        "a.one.scale_weight": ("F32", [], f32(one)),
        "a.row.weight": ("F8_E4M3", [rows, cols], codes.tobytes()),
        "a.row.weight_scale": ("F32", [rows, 1], f32(per_row)),
        "a.block.weight": ("F8_E4M3", [rows, cols], codes.tobytes()),
        "a.block.weight_scale_inv": ("F32", [2, 3], f32(blocks)),
        "a.bare.weight": ("F8_E4M3", [rows, cols], codes.tobytes()),
        "lm_head.weight": ("F8_E4M3", [rows, cols], codes.tobytes()),
        "lm_head.weight_scale": ("F32", [1], f32(one))})
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    quantize(aq, folder, tmp_path / "out", "--bits", bits, "--group-size", 32)
    assert run(aq, "dequantize", tmp_path / "out", tmp_path / "plain", "--dtype", "f32").returncode == 0
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    wanted = {"one": values * 0.5, "row": values * per_row.astype(np.float32)[:, None],
              "block": values * np.kron(blocks.astype(np.float32), np.ones((128, 128))), "bare": values}
    for name, w in wanted.items():
        error = ((plain[f"a.{name}.weight"] - w) ** 2).sum() / (w ** 2).sum()
        assert error < (1e-2 if folded else 1e-12), name
    names = names_in(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight_scale" in names  # its weight is kept, so it is too
    assert any(n.startswith("a.") and "scale" in n for n in names) != folded
    assert set(plain) == {"a.one.weight", "a.row.weight", "a.block.weight", "a.bare.weight", "lm_head.weight"}
    assert np.array_equal(plain["lm_head.weight"], np.float32(values * 0.5))
    validated = run(aq, "validate", folder, tmp_path / "out")
    assert validated.returncode == 0, validated.stderr


def test_fp8_kept_by_a_gate_keeps_its_scale(aq, tmp_path):
    codes = np.random.default_rng(7).integers(0, 120, (64, 64)).astype(np.uint8)
    for order in (["w.weight", "w.weight_scale"], ["w.weight_scale", "w.weight"]):
        entries = {"w.weight": ("F8_E4M3", [64, 64], codes.tobytes()),
                   "w.weight_scale": ("F32", [1], np.float32([2]).tobytes())}
        folder = tmp_path / order[0]
        folder.mkdir()
        raw_safetensors(folder / "model.safetensors", {n: entries[n] for n in order})
        quantize(aq, folder, folder / "../out", "--overwrite", "--min-sqnr-db", 200)
        assert names_in(tmp_path / "out" / "model.safetensors") == set(entries)


def test_fp8_scale_of_a_wrong_shape(aq, tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    raw_safetensors(folder / "model.safetensors", {
        "w.weight": ("F8_E4M3", [64, 64], bytes(4096)), "w.weight_scale": ("F32", [7], bytes(28))})
    done = run(aq, "quantize", folder, tmp_path / "out")
    assert done.returncode == 1 and "w.weight_scale" in done.stderr and "7 elements" in done.stderr


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
def test_a_bad_weight_is_named_and_nothing_is_left(aq, tmp_path, bad, dtype):
    w = np.random.default_rng(8).standard_normal((2000, 300)).astype(dtype)
    w[1234, 56] = bad
    w[1999, 0] = bad
    model = make_model(tmp_path / "m", {"x.weight": w})
    before = files_of(model)
    done = run(aq, "quantize", model, tmp_path / "out")
    assert done.returncode == 1
    assert "x.weight" in done.stderr and "row 1234, column 56" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
    assert files_of(model) == before


def test_layers_are_raised_one_by_one(aq, digits, tmp_path):
    result = quantize(aq, digits, tmp_path / "out", "--profile", "edge", "--min-accuracy", 0.999)
    report = report_of(tmp_path / "out")
    bits = [t["bits"] for t in report.values() if "sqnr_db" in t]
    assert result["layers_raised"] == sum(t["reason"].startswith("raised") for t in report.values()) > 0
    assert all(t["cosine_similarity"] >= 0.999 for t in report.values() if "sqnr_db" in t)
    assert set(bits) <= {4, 8}
    for tensor in report.values():
        if tensor["reason"].startswith("raised"):
            assert "cosine" in tensor["detail"] and "< 0.999" in tensor["detail"]
    assert run(aq, "validate", digits, tmp_path / "out").returncode == 0
    assert run(aq, "inspect", tmp_path / "out", "--verify").returncode == 0


def test_fail_fast_names_the_layer(aq, digits, tmp_path):
    done = run(aq, "quantize", digits, tmp_path / "out", "--profile", "edge", "--min-accuracy", 0.999,
               "--fail-fast")
    assert done.returncode == 1
    assert "transformer_blocks" in done.stderr and "0.999" in done.stderr
    assert not (tmp_path / "out").exists()


def test_names_that_differ_only_in_punctuation(aq, tmp_path):
    rng = np.random.default_rng(9)
    names = ["a.b.weight", "a_b.weight", "A.b.weight", "a.b_weight", "a-b.weight"]
    tensors = {n: rng.standard_normal((32, 64)).astype(np.float32) for n in names}
    model = make_model(tmp_path / "m", tensors)
    quantize(aq, model, tmp_path / "out", "--bits", 8)
    assert run(aq, "dequantize", tmp_path / "out", tmp_path / "plain").returncode == 0
    plain = load_file(tmp_path / "plain" / "model.safetensors")
    assert set(plain) == set(names)
    for name in names:
        assert np.abs(plain[name] - tensors[name]).max() < 0.02


def test_metadata_of_the_input_stays(aq, tmp_path):
    w = {"x.weight": np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)}
    model = make_model(tmp_path / "m", w, metadata={"format": "pt", "author": "a \"b\" \\ ü"})
    quantize(aq, model, tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", "np") as out:
        metadata = out.metadata()
    assert metadata["format"] == "pt" and metadata["author"] == "a \"b\" \\ ü"
    assert json.loads(metadata["arrowquant"])["tensors"]


def test_quantized_input_is_refused(aq, digits, tmp_path):
    quantize(aq, digits, tmp_path / "once")
    done = run(aq, "quantize", tmp_path / "once", tmp_path / "twice")
    assert done.returncode == 1 and "already" in done.stderr
    model = make_model(tmp_path / "gptq", {"w.weight": np.zeros((64, 64), np.float32)},
                       {"quantization_config": {"quant_method": "gptq"}})
    done = run(aq, "quantize", model, tmp_path / "out")
    assert done.returncode == 1 and "gptq" in done.stderr


def test_switches_that_need_calibration(aq, digits, tmp_path):
    for name in ("enable_time_aware", "enable_spatial", "thermodynamic.boundary_smoothing.enabled"):
        done = run(aq, "quantize", digits, tmp_path / "out", "--set", f"{name}=true")
        assert done.returncode == 1 and name in done.stderr, name
    result = quantize(aq, digits, tmp_path / "out")
    assert any("data-free" in note for note in result["notes"])
