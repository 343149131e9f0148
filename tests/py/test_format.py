"""docs/FORMAT.md: a reader written from it gives our values bit for bit, and the reference
safetensors package opens every file that we write."""
import itertools
import json
import pathlib

import aq_reader
import numpy as np
import pytest
from safetensors import deserialize, safe_open
from tool_models import (gaussian, good, header_of, plain_folder, sharded_folder, to_bfloat16,
                         write_json)

COMBINATIONS = list(itertools.product((2, 4, 8), (32, 64, 128, 256), (False, True), (16, 8)))


def tensors():
    constant = gaussian(4, 9, 260)
    constant[3, :] = 0.25
    constant[5, :] = 0
    tiny = gaussian(5, 8, 512, scale=1e-7)
    bf16 = np.frombuffer(to_bfloat16(gaussian(3, 16, 256)), "<u2").astype("<u4") << 16
    return {"blocks.0.a.weight": gaussian(1, 7, 333), "blocks.0.a_weight": gaussian(2, 4, 512),
            "blocks.0.A.weight": ("BF16", bf16.view("<f4").reshape(16, 256)),
            "blocks.0.conv.weight": gaussian(6, 6, 20, 3, 3, dtype="float16"),
            "blocks.0.constant.weight": constant, "blocks.0.tiny.weight": tiny,
            "blocks.0.odd.bias": gaussian(7, 3, dtype="float16"), "blocks.0.steps": np.arange(5),
            "blocks.0.flag": np.array(True), "blocks.0.none": np.zeros((0, 4), "float32"),
            "blocks.0.ünï\"\\.weight": gaussian(8, 33, 40, scale=3)}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return plain_folder(tmp_path_factory.mktemp("format") / "in", tensors())


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def reference_opens(path):
    """The reference package sees the same names, dtypes, shapes and bytes as our reader."""
    found, metadata = aq_reader.read_container(path)
    theirs = dict(deserialize(pathlib.Path(path).read_bytes()))
    assert set(theirs) == set(found)
    for name, view in theirs.items():
        dtype, array = found[name]
        assert (view["dtype"], view["shape"]) == (dtype, list(array.shape))
        assert bytes(view["data"]) == array.tobytes()
    with safe_open(path, "numpy") as opened:
        assert (opened.metadata() or {}) == metadata
        for name in opened.keys():
            if found[name][0] != "BF16":
                assert same_bits(np.asarray(opened.get_tensor(name)), found[name][1])


@pytest.mark.parametrize("bits, group, symmetric, parameter_bits", COMBINATIONS)
def test_a_reader_from_the_page(aq, model, tmp_path, bits, group, symmetric, parameter_bits):
    good(aq, "quantize", model, tmp_path / "q", "--bits", bits, "--group-size", group,
         "--parameter-bits", parameter_bits, *(["--symmetric"] if symmetric else []),
         "--min-accuracy", 0, "--quantize-sensitive", "--quiet")
    good(aq, "dequantize", tmp_path / "q", tmp_path / "plain", "--dtype", "f32", "--quiet")
    file = tmp_path / "q/model.safetensors"
    quantized, kept = aq_reader.read(file)
    plain = aq_reader.read_container(tmp_path / "plain/model.safetensors")[0]
    native = json.loads(aq_reader.read_container(file)[1]["arrowquant"])
    original = tensors()
    assert len(quantized) >= 6 and set(plain) == set(quantized) | set(kept) == set(original)
    for name, values in quantized.items():
        entry = native["tensors"][name]
        assert same_bits(values, plain[name][1]), name
        assert (entry["bits"], entry["group_size"]) == (bits, group)
        assert entry["code"] == ("symmetric" if symmetric else "affine")
        assert entry["shape"] == list(values.shape)
        source = original[name][1] if isinstance(original[name], tuple) else original[name]
        w, v = source.astype("f8").ravel(), values.astype("f8").ravel()
        assert abs(w @ v / np.sqrt((w @ w) * (v @ v)) - entry["cosine"]) < 1e-6, name
        error = ((w - v) ** 2).sum()
        assert abs(10 * np.log10((w @ w) / error) - entry["sqnr_db"]) < 1e-3, name
    for name, (dtype, array) in kept.items():
        if dtype in ("I64", "BOOL"):
            assert same_bits(array, plain[name][1]), name
        else:
            assert same_bits(array.astype("<f4"), plain[name][1]), name
    params = {name: entry["params"] for name, entry in native["tensors"].items()}
    usual = "Q8" if parameter_bits == 8 else "F16"
    assert params["blocks.0.tiny.weight"] == "F32"
    assert params["blocks.0.constant.weight"] == "F16" and params["blocks.0.a.weight"] == usual
    reference_opens(file)
    reference_opens(tmp_path / "plain/model.safetensors")


def test_every_stored_tensor_has_a_checksum(aq, model, tmp_path):
    good(aq, "quantize", model, tmp_path / "q", "--bits", 4, "--quiet")
    found, metadata = aq_reader.read_container(tmp_path / "q/model.safetensors")
    crcs = json.loads(metadata["arrowquant"])["crc32"]
    assert set(crcs) == set(found) and crcs["blocks.0.none"] == "00000000"


def test_header_and_order(aq, model, tmp_path):
    good(aq, "quantize", model, tmp_path / "q", "--bits", 4, "--quiet")
    header = header_of(tmp_path / "q/model.safetensors")
    header.pop("__metadata__")
    size = int.from_bytes((tmp_path / "q/model.safetensors").read_bytes()[:8], "little")
    assert size % 8 == 0

    def rank(name, entry):
        if ".aq_" in name:
            return 2
        return {"I64": 0, "F32": 1, "F16": 3, "BF16": 3, "BOOL": 4}[entry["dtype"]]
    ranks = [rank(name, entry) for name, entry in
             sorted(header.items(), key=lambda item: item[1]["data_offsets"])]
    assert ranks == sorted(ranks) and len(set(ranks)) == 5


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_dequantized_halves_are_rounded_once(aq, model, tmp_path, dtype):
    good(aq, "quantize", model, tmp_path / "q", "--bits", 4, "--quiet")
    good(aq, "dequantize", tmp_path / "q", tmp_path / "plain", "--dtype", dtype, "--quiet")
    quantized, _ = aq_reader.read(tmp_path / "q/model.safetensors")
    plain = aq_reader.read_container(tmp_path / "plain/model.safetensors")[0]
    assert quantized
    for name, values in quantized.items():
        assert plain[name][0] == dtype.upper()
        expected = values.astype("<f2").tobytes() if dtype == "f16" else to_bfloat16(values)
        assert plain[name][1].tobytes() == expected, name
    reference_opens(tmp_path / "plain/model.safetensors")


def test_config_report_and_metadata(aq, model, tmp_path):
    before = (model / "config.json").read_text()
    good(aq, "quantize", model, tmp_path / "q", "--bits", 8, "--group-size", 64,
         "--min-sqnr-db", 12, "--min-accuracy", 0.5, "--quiet")
    config = json.loads((tmp_path / "q/config.json").read_text())
    assert config.pop("quantization_config") == {
        "quant_method": "arrowquant", "format_version": 1, "bits": 8, "group_size": 64,
        "code": "affine", "parameter_bits": 16, "modality": "text", "min_accuracy": 0.5,
        "min_sqnr_db": 12}
    assert config == json.loads(before)
    report = json.loads((tmp_path / "q/arrowquant_report.json").read_text())
    assert {"arrowquant_report", "version", "compression_ratio", "cosine_similarity",
            "model_size_mb", "modality", "bit_width", "bits_per_weight", "sqnr_db",
            "layers_quantized", "layers_kept", "layers_raised", "input_bytes", "output_bytes",
            "tensors", "notes"} <= set(report)
    for tensor in report["tensors"]:
        assert {"name", "dtype", "shape", "bits", "reason", "detail", "input_bytes",
                "output_bytes"} <= set(tensor)
        if tensor["bits"] < 16:
            assert {"code", "group_size", "params", "method", "fit", "cosine_similarity",
                    "sqnr_db", "max_error"} <= set(tensor)
    good(aq, "dequantize", tmp_path / "q", tmp_path / "plain", "--quiet")
    assert (tmp_path / "plain/config.json").read_text() == before
    assert not (tmp_path / "plain/arrowquant_report.json").exists()


def test_shards_and_their_index(aq, tmp_path):
    source = sharded_folder(tmp_path / "in", {f"layers.{i}.proj.weight": gaussian(i, 32, 128)
                                              for i in range(7)})
    index = json.loads((source / "model.safetensors.index.json").read_text())
    index["metadata"]["kept"] = {"a": [1.50]}
    write_json(source / "model.safetensors.index.json", index)
    good(aq, "quantize", source, tmp_path / "q", "--bits", 4, "--quiet")
    good(aq, "dequantize", tmp_path / "q", tmp_path / "plain", "--quiet")
    values = {}
    for folder in ("q", "plain"):
        index = json.loads((tmp_path / folder / "model.safetensors.index.json").read_text())
        assert list(index["weight_map"]) == sorted(index["weight_map"])
        assert index["metadata"]["kept"] == {"a": [1.5]}
        total, names = 0, set()
        for shard in sorted(set(index["weight_map"].values())):
            reference_opens(tmp_path / folder / shard)
            found, metadata = aq_reader.read_container(tmp_path / folder / shard)
            assert metadata["format"] == "pt" and ("arrowquant" in metadata) == (folder == "q")
            assert all(index["weight_map"][name] == shard for name in found)
            names |= set(found)
            total += sum(array.nbytes for _, array in found.values())
            if folder == "q":
                values.update(aq_reader.read(tmp_path / folder / shard)[0])
            else:
                assert all(same_bits(values[name], array) for name, (_, array) in found.items())
        assert names == set(index["weight_map"]) and total == index["metadata"]["total_size"]


def test_a_damaged_byte_is_seen_by_the_reader(aq, model, tmp_path):
    good(aq, "quantize", model, tmp_path / "q", "--bits", 4, "--quiet")
    file = tmp_path / "q/model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(AssertionError):
        aq_reader.read(file)


def test_the_bundled_model(aq, digits, tmp_path):
    for profile in ("edge", "local", "cloud"):
        good(aq, "quantize", digits, tmp_path / profile, "--profile", profile, "--quiet")
        file = tmp_path / profile / "transformer/diffusion_pytorch_model.safetensors"
        reference_opens(file)
        quantized, kept = aq_reader.read(file)
        original = aq_reader.read_container(
            digits / "transformer/diffusion_pytorch_model.safetensors")[0]
        assert set(quantized) | set(kept) == set(original) and len(quantized) > 20
        for name, (dtype, array) in kept.items():
            assert dtype == original[name][0] and same_bits(array, original[name][1])
