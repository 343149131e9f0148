"""compressed-tensors, "pack-quantized": our checkpoints against the package of that name, transformers,
and a reader in NumPy; checkpoints of theirs read by us."""
import json
import subprocess
import sys

import numpy as np
import pytest

from aq_reader import read_container
from test_methods import HESSIANS, originals as layer_originals, reference_moments
from tool_models import (bad, gaussian, good, good_json, header_of, llm_tensors, plain_folder,
                         sharded_folder, write_json, write_safetensors)

NEED = "no {} here (tests/py/requirements-heavy.txt)"
DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def bf16(array):
    """The values that a uint16 array of BF16 bits stands for."""
    return (array.astype(np.uint32) << 16).view(np.float32)


def widen(dtype, array):
    return bf16(array) if dtype == "BF16" else array.astype(np.float32)


def unpack(words, count, bits, axis):
    """Along an axis of 32-bit words, least significant first."""
    words = np.moveaxis(words.view(np.uint32), axis, -1)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    spread = (words[..., None] >> shifts & np.uint32(2**bits - 1))
    return np.moveaxis(spread.reshape(*words.shape[:-1], -1)[..., :count], -1, axis)


def decode(tensors, base, bits):
    """F32 values of a layer, from the format's description alone."""
    rows, cols = tensors[base + "_shape"][1]
    q = unpack(tensors[base + "_packed"][1], cols, bits, 1).astype(np.float32)
    dtype, scale = tensors[base + "_scale"]
    scale = widen(dtype, scale)
    group = cols // scale.shape[1]
    zero = np.full(scale.shape, 2.0**(bits - 1), np.float32)
    if base + "_zero_point" in tensors:
        zero = unpack(tensors[base + "_zero_point"][1], rows, bits, 0).astype(np.float32)
    return (q - np.repeat(zero, group, 1)) * np.repeat(scale, group, 1)


def odd_model(folder, dtype):
    """Rows that fill no word, columns that fill no group, what is no linear layer."""
    tensors = {"a.weight": gaussian(1, 41, 128) + 0.02, "b.weight": gaussian(2, 33, 64) * 30,
               "c.weight": gaussian(3, 16, 96), "constant.weight": np.full((20, 64), -0.25, "f4"),
               "zero.weight": np.zeros((17, 64), "f4"), "conv.weight": gaussian(4, 8, 4, 4, 4),
               "a.bias": gaussian(5, 41), "model.embed_tokens.weight": gaussian(6, 32, 64),
               "up.weight": np.abs(gaussian(7, 64, 64)), "down.weight": -np.abs(gaussian(8, 64, 64)),
               "raw": gaussian(9, 64, 64)}
    return plain_folder(folder, {name: (dtype, array) for name, array in tensors.items()},
                        {"architectures": ["XForCausalLM"], "dtype": DTYPES[dtype]})


def values(aq, folder, work, dtype="f32"):
    good(aq, "dequantize", folder, work, "--dtype", dtype, "--overwrite")
    files = sorted(work.glob("*.safetensors"))
    return {name: value for file in files for name, value in read_container(file)[0].items()}


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_layout(symmetric, bits, dtype, aq, tmp_path):
    model = odd_model(tmp_path / "m", dtype)
    flags = ["--symmetric"] if symmetric else []
    good(aq, "quantize", model, tmp_path / "q", "--format", "compressed-tensors", "--bits", bits,
         "--group-size", "64", "--min-accuracy", "0", "--quantize-sensitive", *flags)
    tensors, metadata = read_container(tmp_path / "q/model.safetensors")
    assert metadata == {"format": "pt"}
    quantized = {"a", "b", "constant", "zero", "up", "down"}
    assert {name[:-14] for name in tensors if name.endswith(".weight_packed")} == quantized
    config = json.loads((tmp_path / "q/config.json").read_text())
    assert config["dtype"] == DTYPES[dtype]
    assert config["quantization_config"] == {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group",
            "group_size": 64, "dynamic": False}}},
        "ignore": ["c", "model.embed_tokens", "lm_head"]}
    original = {name: widen(*value) for name, value
                in read_container(model / "model.safetensors")[0].items()}
    ours = values(aq, tmp_path / "q", tmp_path / "back")
    for name in quantized:
        base = name + ".weight"
        rows, cols = original[base].shape
        parts = {key: tensors[f"{base}_{key}"] for key in ("packed", "scale", "shape")}
        assert parts["packed"][0] == "I32" and parts["packed"][1].shape == (rows, cols * bits // 32)
        assert parts["scale"][0] == dtype and parts["scale"][1].shape == (rows, cols // 64)
        assert parts["shape"][0] == "I64" and parts["shape"][1].tolist() == [rows, cols]
        if symmetric:
            assert base + "_zero_point" not in tensors
        else:
            zero = tensors[base + "_zero_point"]
            assert zero[0] == "I32" and zero[1].shape == (-(-rows * bits // 32), cols // 64)
        got = decode(tensors, base, bits)
        assert np.array_equal(got, ours[base][1])  # no rounding apart: it is the same number
        if name in ("constant", "zero"):
            assert np.array_equal(got, original[base])
        error = np.sum((got - original[base])**2.0) / max(np.sum(original[base]**2.0), 1e-30)
        assert error < {2: 0.25, 4: 0.015, 8: 1e-4}[bits], name
    for name in ("c.weight", "conv.weight", "a.bias", "model.embed_tokens.weight", "raw"):
        assert np.array_equal(widen(*tensors[name]), original[name])
    report = json.loads((tmp_path / "q/arrowquant_report.json").read_text())
    details = {entry["name"]: entry["detail"] for entry in report["tensors"]}
    assert "no multiple of the group size" in details["c.weight"]
    assert "not the weight of a linear layer" in details["conv.weight"] == details["raw"]


def test_better_than_min_and_max(aq, tmp_path):
    """Quantized for the format: scale and integer zero point are searched, not taken from the ends."""
    w = gaussian(11, 256, 512) + gaussian(12, 256, 1)
    model = plain_folder(tmp_path / "m", {"x.weight": w})
    for bits in (2, 4, 8):
        good(aq, "quantize", model, tmp_path / f"q{bits}", "--format", "compressed-tensors", "--bits",
             bits, "--group-size", "64", "--min-accuracy", "0")
        got = decode(read_container(tmp_path / f"q{bits}/model.safetensors")[0], "x.weight", bits)
        x = w.reshape(-1, 64).astype(np.float64)
        low, high = np.minimum(x.min(1), 0)[:, None], np.maximum(x.max(1), 0)[:, None]
        scale = (high - low) / (2**bits - 1)
        zero = np.round(-low / scale)
        plain = (np.clip(np.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale
        ours, theirs = np.sum((got - w)**2.0), np.sum((plain - x)**2.0)
        assert ours < {2: 0.7, 4: 0.95, 8: 1.0}[bits] * theirs


@pytest.mark.parametrize("threads", [1, 3])
def test_same_bytes(threads, aq, tmp_path):
    model = plain_folder(tmp_path / "m", llm_tensors())
    outputs = []
    for number, flags in enumerate((["--threads", threads], ["--isa", "scalar"], ["--streaming"])):
        good(aq, "quantize", model, tmp_path / str(number), "--format", "compressed-tensors",
             "--group-size", "32", *flags)
        outputs.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]


def test_shards_and_reading_back(aq, tmp_path):
    model = sharded_folder(tmp_path / "m", llm_tensors())
    good(aq, "quantize", model, tmp_path / "q", "--format", "compressed-tensors", "--layer-bits",
         "*down_proj*=8", "--group-size", "64")
    index = json.loads((tmp_path / "q/model.safetensors.index.json").read_text())
    stored = {name: file.name for file in (tmp_path / "q").glob("*.safetensors")
              for name in header_of(file) if name != "__metadata__"}
    assert index["weight_map"] == stored and len(set(stored.values())) == 3
    down = "model.layers.0.mlp.down_proj"
    before = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
    assert stored[down + ".weight_packed"] == before[down + ".weight"]
    config = json.loads((tmp_path / "q/config.json").read_text())["quantization_config"]
    groups = {group["weights"]["num_bits"]: sorted(group["targets"]) for group in
              config["config_groups"].values()}
    assert groups == {4: ["Linear"], 8: [down, down.replace(".0.", ".1.")]}
    shown = good_json(aq, "inspect", tmp_path / "q")
    by_name = {tensor["name"]: tensor for tensor in shown["tensors"]}
    assert by_name[down + ".weight"]["bits"] == 8
    assert by_name[down + ".weight"]["code"] == "zero_point"
    assert len(by_name) == len(llm_tensors())
    result = good_json(aq, "validate", model, tmp_path / "q", "--layers")
    assert result["passed"] and len(result["layers"]) == 12
    difference = good_json(aq, "diff", model, tmp_path / "q")
    assert len(difference["layers"]) == len(llm_tensors())
    message = bad(aq, "quantize", tmp_path / "q", tmp_path / "twice")
    assert "quantized already" in message and "compressed-tensors" in message


def test_parts_in_several_files(aq, tmp_path):
    """Other writers split a layer over shards."""
    good(aq, "quantize", plain_folder(tmp_path / "m", llm_tensors()), tmp_path / "q", "--format",
         "compressed-tensors", "--group-size", "64")
    tensors, _ = read_container(tmp_path / "q/model.safetensors")
    split = sharded_folder(tmp_path / "s", {name: array for name, (dtype, array) in tensors.items()
                                            if dtype != "BF16"}, 4)
    write_json(split / "config.json", json.loads((tmp_path / "q/config.json").read_text()))
    first, second = values(aq, tmp_path / "q", tmp_path / "b1"), values(aq, split, tmp_path / "b2")
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name][1], second[name][1]) for name in first)


def test_what_is_refused(aq, tmp_path):
    model = plain_folder(tmp_path / "m", llm_tensors())
    message = bad(aq, "quantize", model, tmp_path / "q", "--format", "compressed-tensors",
                  "--parameter-bits", "8")
    assert "parameter_bits" in message and not (tmp_path / "q").exists()


def test_fp8_input(aq, tmp_path):
    """Kept FP8 weights become the model's dtype, their scales folded in."""
    codes = (np.arange(64 * 64) % 100).astype(np.uint8).reshape(64, 64)
    write = {"a.weight": ("F8_E4M3", codes), "a.weight_scale": np.array(0.5, "f4"),
             "lm_head.weight": ("F8_E4M3", codes), "lm_head.weight_scale": np.array(0.5, "f4")}
    folder = tmp_path / "m"
    folder.mkdir()
    write_json(folder / "config.json", {"architectures": ["XForCausalLM"], "dtype": "bfloat16",
                                        "quantization_config": {"quant_method": "fp8"}})
    header, offset, blob = {}, 0, b""
    for name, value in write.items():
        dtype, array = value if isinstance(value, tuple) else ("F32", value)
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
        blob += array.tobytes()
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + blob)
    good(aq, "quantize", folder, tmp_path / "q", "--format", "compressed-tensors", "--group-size",
         "32", "--bits", "8", "--symmetric")
    tensors, _ = read_container(tmp_path / "q/model.safetensors")
    assert set(tensors) == {"a.weight_packed", "a.weight_scale", "a.weight_shape", "lm_head.weight"}
    assert tensors["a.weight_scale"][0] == tensors["lm_head.weight"][0] == "BF16"
    kept = bf16(tensors["lm_head.weight"][1])
    got = decode(tensors, "a.weight", 8)
    assert np.abs(got - kept).max() < 0.01 * np.abs(kept).max()


@pytest.mark.parametrize("flags", [[], ["--symmetric"]])
def test_gptq(flags, aq, digits, tmp_path):
    """Feedback works on integer zero points and BF16 scales as well: the layers' outputs err several
    times less on what the calibration saw."""
    moments, originals = reference_moments(), layer_originals()
    means = {}
    for method in ("ptq", "gptq"):
        good(aq, "quantize", digits, tmp_path / method, "--format", "compressed-tensors",
             "--group-size", "64", "--method", method, "--calibration", HESSIANS, *flags)
        tensors, _ = read_container(next((tmp_path / method / "transformer").glob("*.safetensors")))
        errors = []
        for packed in (name for name in tensors if name.endswith("_packed")):
            name = packed[:-len("_packed")]
            w, h = originals[name], moments[name]
            e = w - decode(tensors, name, 4).astype(np.float64)
            errors.append(np.sum(e @ h * e) / np.sum(w @ h * w))
        assert len(errors) == 28
        means[method] = np.mean(errors)
    assert means["gptq"] < 5e-4 and means["gptq"] < 0.3 * means["ptq"]


# ---------------------------------------------------------------- the package

@pytest.fixture(scope="module")
def package():
    torch = pytest.importorskip("torch", reason=NEED.format("torch"))
    pytest.importorskip("compressed_tensors", reason=NEED.format("compressed-tensors"))
    from compressed_tensors.compressors import pack_quantized
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    class Package:
        compressor = pack_quantized.PackedQuantizationCompressor

        @staticmethod
        def scheme(bits, symmetric, group):
            return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(
                num_bits=bits, type="int", symmetric=symmetric, strategy="group",
                group_size=group, dynamic=False))
    Package.torch = torch
    return Package


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_their_decompression_of_ours(symmetric, bits, dtype, aq, package, tmp_path):
    """To the bit what `aq dequantize` gives, in the model's dtype; every tensor loads in torch."""
    from safetensors import safe_open
    model = odd_model(tmp_path / "m", dtype)
    flags = ["--symmetric"] if symmetric else []
    good(aq, "quantize", model, tmp_path / "q", "--format", "compressed-tensors", "--bits", bits,
         "--group-size", "64", "--min-accuracy", "0", *flags)
    good(aq, "dequantize", tmp_path / "q", tmp_path / "b", "--dtype", dtype.lower())
    layers = 0
    with safe_open(tmp_path / "q/model.safetensors", "pt") as file, \
            safe_open(tmp_path / "b/model.safetensors", "pt") as back:
        names = list(file.keys())
        for packed in (name for name in names if name.endswith("_packed")):
            base = packed[:-len("_packed")]
            state = {f"weight_{part}": file.get_tensor(f"{base}_{part}") for part in
                     ("packed", "scale", "shape", "zero_point") if f"{base}_{part}" in names}
            weight = package.compressor.decompress(
                state, package.scheme(bits, symmetric, 64))["weight"]
            assert weight.dtype == getattr(package.torch, DTYPES[dtype])
            assert package.torch.equal(weight, back.get_tensor(base))
            layers += 1
    assert layers == 6


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_our_decompression_of_theirs(symmetric, dtype, aq, package, tmp_path):
    """Scales with all the bits of their dtype."""
    from safetensors.torch import save_file
    torch = package.torch
    torch.manual_seed(5)
    kind = getattr(torch, DTYPES[dtype])
    tensors, expected = {}, {}
    for bits in (2, 4, 8):
        weight = torch.randn(19, 128).to(kind)
        state = {"weight": weight, "weight_scale": torch.rand(19, 4).mul(0.3).add(0.01).to(kind)}
        if not symmetric:
            state["weight_zero_point"] = torch.randint(-2**(bits - 1), 2**(bits - 1), (19, 4),
                                                       dtype=torch.int8)
        scheme = package.scheme(bits, symmetric, 32)
        state = package.compressor.compress(state, scheme)
        expected[f"l{bits}.weight"] = package.compressor.decompress(state, scheme)["weight"]
        tensors.update({f"l{bits}.{name}": value.contiguous() for name, value in state.items()})
    folder = tmp_path / "m"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    groups = {f"group_{bits}": {"targets": [f"l{bits}"], "weights": {
        "num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group",
        "group_size": 32, "dynamic": False, "actorder": None, "observer": "minmax"},
        "input_activations": None, "output_activations": None} for bits in (2, 4, 8)}
    write_json(folder / "config.json", {"quantization_config": {
        "config_groups": groups, "format": "pack-quantized", "ignore": [], "kv_cache_scheme": None,
        "quant_method": "compressed-tensors", "quantization_status": "compressed"}})
    good(aq, "dequantize", folder, tmp_path / "b", "--dtype", dtype.lower())
    back, _ = read_container(tmp_path / "b/model.safetensors")
    for name, weight in expected.items():
        got = torch.from_numpy(back[name][1].view(np.int16 if dtype != "F32" else np.int32).copy())
        assert torch.equal(got, weight.view(got.dtype)), name


# ---------------------------------------------------------------- transformers

TRANSFORMERS = """
import subprocess, sys, torch
from transformers import (AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig,
                          LlamaForCausalLM)
aq, work = sys.argv[1:]

def tool(*words):
    done = subprocess.run([aq, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

for kind, more in (("symmetric", ["--symmetric", "--layer-bits", "*o_proj*=8"]), ("affine", [])):
    m, q, b = (f"{work}/{kind}-{name}" for name in "mqb")
    torch.manual_seed(1)
    config = LlamaConfig(hidden_size=128, intermediate_size=352, num_hidden_layers=2, vocab_size=96,
                         num_attention_heads=4, num_key_value_heads=2,
                         tie_word_embeddings=kind == "symmetric", dtype="bfloat16")
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(m)
    tool("quantize", m, q, "--format", "compressed-tensors", "--group-size", "32", *more)
    tool("dequantize", q, b, "--dtype", "bf16")
    options = {} if kind == "symmetric" else {
        "quantization_config": CompressedTensorsConfig(dequantize=True)}
    ids = torch.arange(24).reshape(2, 12) * 3
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(q, dtype=torch.bfloat16, **options)
        plain = AutoModelForCausalLM.from_pretrained(b, dtype=torch.bfloat16)
        original = AutoModelForCausalLM.from_pretrained(m, dtype=torch.bfloat16)
        out, same, far = (part(ids).logits for part in (model, plain, original))
    assert torch.equal(out, same), (out - same).abs().max()
    assert torch.isfinite(out).all() and not torch.equal(out, far)
    tokens = model.generate(ids[:1, :4], min_new_tokens=4, max_new_tokens=4, do_sample=False)
    assert tokens.shape == (1, 8)
    print("equal", kind, float((out.float() - far.float()).norm() / far.float().norm()))
"""


def test_transformers(aq, tmp_path):
    """Small models, embeddings tied and apart, are loaded, run, and give what their dequantized weights
    give, to the bit. One process: its imports take longer than all else."""
    for name in ("torch", "transformers", "compressed_tensors"):
        pytest.importorskip(name, reason=NEED.format(name))
    done = subprocess.run([sys.executable, "-c", TRANSFORMERS, str(aq), str(tmp_path)],
                          capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    shown = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("equal ")]
    assert [kind for kind, _ in shown] == ["symmetric", "affine"]
    assert all(float(error) < 0.25 for _, error in shown)
    for kind, _ in shown:
        config = json.loads((tmp_path / f"{kind}-q/config.json").read_text())
        assert "lm_head" in config["quantization_config"]["ignore"]
