"""GGUF files: as the gguf package reads them, as diffusers loads and runs them, and back."""
import json
import subprocess

import dit
import ggml
import gguf_bytes as by_hand
import numpy as np
import pytest
from gguf_bytes import ARCH, ARRAY, BOOL, I32, STRING, U32, image, pair, tensor

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")


def run(aq, *words, status=0):
    done = subprocess.run([aq, *map(str, words)], capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def tensors(path):
    """{name: (type name, float32 array)} as the gguf package decodes it"""
    out = {}
    for tensor in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(tensor.shape))
        data = tensor.data
        if tensor.tensor_type != gguf.GGMLQuantizationType.I64:
            data = gguf.quants.dequantize(data, tensor.tensor_type)
        out[tensor.name] = (tensor.tensor_type.name, data.reshape(shape))
    return out


def check_with_ggml(path, ours):
    """ggml's own decoders on the bytes of the file, where a wheel that bundles them is installed."""
    if ggml.folder() is None:
        return
    library = ggml.Ggml()
    for tensor in gguf.GGUFReader(path).tensors:
        kind, values = ours[tensor.name]
        if kind in ggml.TYPES and kind != "F32":  # those it takes as they are
            data = np.frombuffer(np.ascontiguousarray(tensor.data).tobytes(), np.uint8)
            theirs = library.dequantize(kind, data, values.size).reshape(values.shape)
            assert np.array_equal(theirs.view(np.uint32), values.astype(np.float32).view(np.uint32)), \
                tensor.name


def plain(path):
    from safetensors.numpy import load_file
    return load_file(path)


def fields(path):
    return {f.name: f.contents() for f in gguf.GGUFReader(path).fields.values()}


def digits_weights(digits):
    data = (digits / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    out = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            wide = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
            out[name] = wide.view(np.float32).reshape(entry["shape"])
    return out


CHOICES = {"Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q4_K": 14, "Q2_K": 10, "F16": 1, "BF16": 32, "F32": 0}


@pytest.mark.parametrize("name", CHOICES)
def test_digits_and_back(aq, digits, tmp_path, name):
    """Every type, as the package decodes it and as we do; the same names, shapes and numbers."""
    file, back = tmp_path / "digits.gguf", tmp_path / "back.safetensors"
    told = run(aq, "quantize", digits, file, "--format", "gguf", "--gguf-type", name)
    ours = tensors(file)
    check_with_ggml(file, ours)
    original = digits_weights(digits)
    assert set(ours) == set(original)
    types = {kind for kind, _ in ours.values()}
    fits = name not in ("Q4_K", "Q2_K")
    if fits:
        assert types <= {name, "F32", "F16"} and name in types
        assert fields(file)["general.file_type"] == CHOICES[name]
    else:  # the model's rows of 128 are no superblocks: those of 512 are
        fallback = {"Q4_K": "Q4_1", "Q2_K": "Q4_0"}[name]
        assert {name, fallback} <= types
        assert "rows of 128 do not fit" in (told + run(
            aq, "quantize", digits, "--format", "gguf", "--gguf-type", name, "--dry-run", "--json"))
    assert fields(file)["general.quantization_version"] == 2
    quantized = 0
    for key, (kind, values) in ours.items():
        assert values.shape == original[key].shape, key
        if kind == "F32":
            assert np.array_equal(values, original[key]), key
        elif kind == "F16":
            assert np.array_equal(values, original[key].astype(np.float16)), key
        elif kind == "BF16":
            assert np.array_equal(values, original[key]), key
        else:
            quantized += 1
            assert values.shape[-1] % 32 == 0
    assert (quantized > 0) == (name not in ("F16", "BF16", "F32"))
    if quantized:
        run(aq, "dequantize", file, back, "--quiet")
        decoded = plain(back)
        for key, (_, values) in ours.items():
            assert np.array_equal(decoded[key].view(np.uint32), values.view(np.uint32)), key


def test_calibration_weighs_the_error(aq, digits, tmp_path):
    """A run with statistics errs less where inputs are large, in superblocks and in small ones."""
    statistics, original = dit.load(dit.REFERENCE / "activations.safetensors"), digits_weights(digits)
    errors = {"Q2_K": [], "Q4_0": []}
    for words in ((), ("--calibration", dit.REFERENCE / "activations.safetensors", "--set",
                       "enable_spatial=false")):
        run(aq, "quantize", digits, tmp_path / "q.gguf", "--format", "gguf", "--gguf-type", "Q2_K",
            "--overwrite", "--quiet", *words)
        found = {"Q2_K": [], "Q4_0": []}
        for name, (kind, values) in tensors(tmp_path / "q.gguf").items():
            if kind in found:
                weight = statistics[name.removesuffix(".weight") + ".act_sqmean"].astype("f8").mean(0)
                found[kind].append(((original[name] - values.astype("f8")) ** 2 * weight).sum())
        for kind, sums in found.items():
            errors[kind].append(np.array(sums))
    for kind, (plain, weighted) in errors.items():
        assert len(plain) >= 4 and (weighted <= plain).all(), kind
        assert (weighted / plain).mean() < 0.97, kind


def test_defaults_by_bits(aq, digits, tmp_path):
    def kinds(*words):
        out = tmp_path / "out.gguf"
        run(aq, "quantize", digits, out, "--format", "gguf", "--overwrite", "--quiet", *words)
        return {kind for kind, _ in tensors(out).values()} - {"F32", "F16"}
    assert kinds("--bits", "8") == {"Q8_0"}
    assert kinds("--bits", "4") == {"Q4_K", "Q4_1"}
    assert kinds("--bits", "2") == {"Q2_K", "Q4_0"}
    assert kinds("--bits", "4", "--group-size", "32") == {"Q4_1"}
    assert kinds("--bits", "4", "--group-size", "32", "--symmetric") == {"Q4_0"}
    assert "Q8_0" in kinds("--bits", "2", "--layer-bits", "*.attn1.to_q.weight=8")


def test_what_is_not_used_is_told(aq, digits, tmp_path):
    told = run(aq, "quantize", digits, tmp_path / "a.gguf", "--format", "gguf", "--group-size", "64",
               "--symmetric")
    assert "group_size 64 is not used: Q4_K has blocks of 256" in told
    assert "symmetric is not used: Q4_K has minimums" in told
    told = run(aq, "quantize", digits, tmp_path / "b.gguf", "--format", "gguf", "--bits", "8",
               "--gguf-type", "Q4_K", status=1)
    assert "Q4_K has 4 bits, bit_width asks for 8" in told
    told = run(aq, "quantize", digits, tmp_path / "c.gguf", "--format", "gguf",
               "--parameter-bits", "8", status=1)
    assert "parameter_bits" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf"]


def test_folder_keeps_its_other_files(aq, digits, tmp_path):
    out = tmp_path / "out"
    run(aq, "quantize", digits, out, "--format", "gguf", "--quiet")
    names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert names == ["arrowquant_report.json", "model_index.json",
                     "scheduler/scheduler_config.json", "transformer/config.json",
                     "transformer/diffusion_pytorch_model.gguf"]
    assert (out / "transformer/config.json").read_bytes() == (
        digits / "transformer/config.json").read_bytes()
    assert "passed" in run(aq, "validate", digits, out)
    assert "Q4_1" in run(aq, "inspect", out)
    assert "not quantized again" in run(aq, "quantize", out, tmp_path / "again", status=1)


def write(path, weights, metadata=None):
    from safetensors.numpy import save_file
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path, metadata=metadata)


def test_odd_tensors(aq, tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        "a.weight": rng.standard_normal((64, 96)).astype(np.float32),
        "conv.weight": rng.standard_normal((64, 32, 3, 3)).astype(np.float32),
        "video.weight": rng.standard_normal((64, 16, 1, 2, 32)).astype(np.float32),
        "thin.weight": rng.standard_normal((64, 50)).astype(np.float32),
        "huge.bias": np.array([1e38, -1e-38], np.float32),
        "wide.weight": np.full((64, 50), 70000, np.float32),
        "table": rng.standard_normal((2, 6, 256)).astype(np.float32),
        "scalar": np.array(3, np.float32),
        "count": np.arange(4, dtype=np.int64),
    }
    write(tmp_path / "m.safetensors", weights)
    told = run(aq, "quantize", tmp_path / "m.safetensors", tmp_path / "m.gguf", "--format", "gguf",
               "--layers")
    ours = tensors(tmp_path / "m.gguf")
    kinds = {name: kind for name, (kind, _) in ours.items()}
    assert kinds == {"a.weight": "Q4_1", "conv.weight": "F16", "video.weight": "Q4_1",
                     "thin.weight": "F16", "huge.bias": "F32", "wide.weight": "F32", "table": "F32",
                     "scalar": "F32", "count": "I64"}
    assert "1 tensors of over 4 dimensions" in told
    plan = json.loads(run(aq, "quantize", tmp_path / "m.safetensors", "--format", "gguf",
                          "--dry-run", "--json"))
    details = {t["name"]: t["detail"] for t in plan["tensors"]}
    assert details["conv.weight"] == "rows of 3 are no multiple of 32"
    assert details["a.weight"] == "rows of 96 do not fit Q4_K: Q4_1"
    assert details["table"] == "not a layer's weight: readers do not decode it"
    for name in ("table", "huge.bias", "wide.weight", "count"):
        assert np.array_equal(ours[name][1], weights[name]), name
    assert ours["video.weight"][1].shape == (64, 16, 1, 2, 32)


def test_refused_tensors(aq, tmp_path):
    good = {"a.weight": np.ones((64, 96), np.float32)}
    for extra, said in [({"flags": np.ones(3, np.bool_)}, "flags is BOOL, which GGUF does not have"),
                        ({"n" * 121 + ".weight": np.ones(4, np.float32)}, "128 bytes"),
                        ({"none.weight": np.ones((0, 4), np.float32)}, "is empty")]:
        write(tmp_path / "m.safetensors", {**good, **extra})
        told = run(aq, "quantize", tmp_path / "m.safetensors", tmp_path / "m.gguf", "--format",
                   "gguf", status=1)
        assert said in told
        assert not (tmp_path / "m.gguf").exists()


def test_fp8_scales_are_folded_in(aq, tmp_path):
    """Of weights that are quantized, and of those that are only stored in another dtype."""
    rng = np.random.default_rng(4)
    raw = rng.integers(0, 120, (64, 64), dtype=np.uint8)
    exponent, mantissa = raw >> 3, raw & 7
    value = np.where(exponent == 0, mantissa / 8 * 2.0 ** -6,
                     (1 + mantissa / 8) * 2.0 ** (exponent.astype(float) - 7))
    scale = np.float32(0.25)

    stored = {"x.weight": ("F8_E4M3", raw), "x.weight_scale": ("F32", scale.reshape(1)),
              "head.weight": ("F8_E4M3", raw), "head.weight_scale": ("F32", scale.reshape(1))}
    header, data = {}, b""
    for name, (dtype, array) in stored.items():
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    run(aq, "quantize", tmp_path / "m.safetensors", tmp_path / "m.gguf", "--format", "gguf",
        "--bits", "8", "--quiet")
    ours = tensors(tmp_path / "m.gguf")
    assert {n: k for n, (k, _) in ours.items()} == {"x.weight": "Q8_0", "head.weight": "F16"}
    assert np.array_equal(ours["head.weight"][1], (value * 0.25).astype(np.float16))
    assert np.allclose(ours["x.weight"][1], value * 0.25, atol=0.25 * 240 / 254)


def test_architecture(aq, digits, tmp_path):
    run(aq, "quantize", digits, tmp_path / "a.gguf", "--format", "gguf", "--quiet")
    assert fields(tmp_path / "a.gguf")["general.architecture"] == "unknown"
    run(aq, "quantize", digits, tmp_path / "b.gguf", "--format", "gguf", "--quiet", "--set",
        "gguf_architecture=dit")
    assert fields(tmp_path / "b.gguf")["general.architecture"] == "dit"
    marks = {
        "aura": ["double_layers.3.modX.1.weight"],
        "hidream": ["caption_projection.0.linear.weight",
                    "double_stream_blocks.0.block.ff_i.shared_experts.w3.weight"],
        "cosmos": ["blocks.0.mlp.layer1.weight", "blocks.0.adaln_modulation_cross_attn.1.weight"],
        "ltxv": ["adaln_single.emb.timestep_embedder.linear_2.weight",
                 "transformer_blocks.27.scale_shift_table", "caption_projection.linear_2.weight"],
        "hyvid": ["double_blocks.0.img_attn_proj.weight",
                  "txt_in.individual_token_refiner.blocks.1.self_attn_qkv.weight"],
        "wan": ["blocks.0.self_attn.norm_q.weight", "text_embedding.2.weight", "head.modulation"],
        "lumina2": ["cap_embedder.1.weight", "context_refiner.0.attention.qkv.weight"],
        "flux": ["double_blocks.0.img_attn.proj.weight", "single_blocks.0.linear1.weight"],
        "sd3": ["joint_blocks.0.x_block.attn.qkv.weight"],
        "sdxl": ["input_blocks.0.0.weight", "label_emb.0.0.weight"],
        "sd1": ["input_blocks.0.0.weight", "output_blocks.0.0.in_layers.2.weight"],
    }
    for name, keys in marks.items():
        write(tmp_path / "m.safetensors", {key: np.ones((32, 64), np.float32) for key in keys})
        run(aq, "quantize", tmp_path / "m.safetensors", tmp_path / "m.gguf", "--format", "gguf",
            "--quiet", "--overwrite")
        assert fields(tmp_path / "m.gguf")["general.architecture"] == name
        assert set(tensors(tmp_path / "m.gguf")) == set(keys)
    classes = {"QwenImageTransformer2DModel": "qwen_image", "AuraFlowTransformer2DModel": "aura"}
    for name, architecture in classes.items():
        write(tmp_path / name / "diffusion_pytorch_model.safetensors",
              {"x.weight": np.ones((32, 64), np.float32)})
        (tmp_path / name / "config.json").write_text(json.dumps({"_class_name": name}))
        told = run(aq, "quantize", tmp_path / name, tmp_path / f"{name}.gguf", "--format", "gguf")
        assert fields(tmp_path / f"{name}.gguf")["general.architecture"] == architecture
        assert f"architecture {architecture}, to be loaded by" in told


# ---------------------------------------------------------------- bad files

X = tensor("x", [2, 32], 0)
ROOM = bytes(256)
HOSTILE = {
    "nothing in it": (b"", "does not begin with GGUF"),
    "half a magic": (b"GG", "does not begin with GGUF"),
    "another magic": (image(magic=b"GGML"), "does not begin with GGUF"),
    "no version": (b"GGUF\x03\0", "ends within the version"),
    "version 1": (image(version=1), "GGUF version 1; 2 and 3 are read"),
    "version 4": (image(version=4), "GGUF version 4"),
    "big-endian": (image(version=3 << 24), "perhaps of a big-endian machine"),
    "no counts": (b"GGUF" + (3).to_bytes(4, "little"), "ends within the number of tensors"),
    "more tensors than bytes": (image([ARCH], [X], ROOM, counts=(1 << 40, 1)), "bytes cannot"),
    "more keys than bytes": (image([ARCH], [X], ROOM, counts=(1, 1 << 62)), "bytes cannot"),
    "a negative count": (image([ARCH], [X], ROOM, counts=(1, (1 << 64) - 1)), "bytes cannot"),
    "fewer keys than counted": (image([ARCH], counts=(0, 2)), "an empty key"),
    "a key past the end": (image([(1 << 60).to_bytes(8, "little") + b"abc" + bytes(20)]),
                           "ends within a key"),
    "an endless key": (image([by_hand.text("k" * 70000) + bytes(12)]),
                       "a key of 70000 bytes"),
    "a key that is not UTF-8": (image([pair(b"\xff\xfe", U32, 1)]), "is not UTF-8 text"),
    "a key with a zero": (image([pair("a\0b", U32, 1)]), "is not UTF-8 text"),
    "a key twice": (image([ARCH, ARCH]), "general.architecture is there twice"),
    "a type that is not": (image([by_hand.text("k") + (13).to_bytes(4, "little") + bytes(16)]),
                           "key k: value of type 13"),
    "a truth of 2": (image([pair("k", BOOL, 2), ARCH]), "truth value 2"),
    "a text past the end": (image([by_hand.text("k") + STRING.to_bytes(4, "little") +
                                   (1 << 63).to_bytes(8, "little")]), "ends within a text"),
    "an array past the end": (image([by_hand.text("k") + ARRAY.to_bytes(4, "little") +
                                     U32.to_bytes(4, "little") + (1 << 61).to_bytes(8, "little")]),
                              "ends within an array"),
    "an array whose size overflows": (image([by_hand.text("k") + ARRAY.to_bytes(4, "little") +
                                             by_hand.U64.to_bytes(4, "little") +
                                             ((1 << 61) + 1).to_bytes(8, "little")]),
                                      "ends within an array"),
    "texts past the end": (image([by_hand.text("k") + ARRAY.to_bytes(4, "little") +
                                  STRING.to_bytes(4, "little") + (9).to_bytes(8, "little")]),
                           "ends within a text's length"),
    "an array of arrays": (image([pair("k", ARRAY, (ARRAY, []))]), "an array of arrays"),
    "alignment 0": (image([pair("general.alignment", U32, 0)]), "general.alignment is 0"),
    "alignment 24": (image([pair("general.alignment", U32, 24)]), "general.alignment is 24"),
    "alignment as a text": (image([pair("general.alignment", STRING, "32")]), "of type 4"),
    "no tensor behind the count": (image([ARCH] * 1, [], bytes(64), counts=(1, 1)),
                                   "a tensor without a name"),
    "a tensor twice": (image([], [X, tensor("x", [2, 32], 0, 256)], bytes(512)), "is there twice"),
    "nine dimensions": (image([], [tensor("x", [1] * 9, 0)], ROOM), "has 9 dimensions"),
    "a rank of 2^32 - 1": (image([], [by_hand.text("x") + b"\xff" * 4 + bytes(64)], ROOM),
                           "has 4294967295 dimensions"),
    "a negative dimension": (image([], [tensor("x", [(1 << 64) - 1], 0)], ROOM),
                             "a negative dimension"),
    "a product that overflows": (image([], [tensor("x", [1 << 32, 1 << 32], 0)], ROOM),
                                 "needs over 63 bits"),
    "a type that was removed": (image([], [tensor("x", [32], 4)], ROOM), "of type 4"),
    "a type of the future": (image([], [tensor("x", [32], 1000)], ROOM), "of type 1000"),
    "half a block": (image([], [tensor("x", [2, 48], 8)], ROOM), "rows of 48 are no multiple of 32"),
    "half a superblock": (image([], [tensor("x", [2, 128], 12)], ROOM), "no multiple of 256"),
    "an offset inside another": (image([], [X, tensor("y", [4], 0, 32)], ROOM),
                                 "tensor y begins at 32; 256 was expected"),
    "an offset that is not aligned": (image([], [tensor("x", [4], 0, 8)], ROOM), "begins at 8"),
    "an offset past the end": (image([], [tensor("x", [4], 0, 1 << 40)], ROOM), "0 was expected"),
    "data cut short": (image([], [X], bytes(255)), "the file at"),
    "no data at all": (image([], [X]), "download it again"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_bad_files_are_refused(aq, tmp_path, name):
    data, said = HOSTILE[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    told = run(aq, "inspect", path, status=1)
    assert said in told and str(path) in told


def test_every_cut_of_a_good_file_is_refused(aq, tmp_path):
    pairs = [ARCH, pair("list", ARRAY, (STRING, ["a", "bc"])), pair("i", ARRAY, (I32, [1, 2]))]
    data = image(pairs, [X, tensor("y", [1, 32], 8, 256)], bytes(256 + 34))
    path = tmp_path / "cut.gguf"
    path.write_bytes(data)
    assert "Q8_0" in run(aq, "inspect", path)
    for size in range(0, len(data), 7):
        path.write_bytes(data[:size])
        assert str(path) in run(aq, "inspect", path, status=1), size


def test_types_of_others_are_listed_and_not_decoded(aq, tmp_path):
    for name, data in by_hand.good_images().items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        run(aq, "inspect", path)
    told = run(aq, "inspect", tmp_path / "other.gguf")
    assert "Q6_K" in told
    told = run(aq, "dequantize", tmp_path / "other.gguf", tmp_path / "out.safetensors", status=1)
    assert "stored as Q6_K, which this version does not decode" in told
    assert not (tmp_path / "out.safetensors").exists()


# ---------------------------------------------------------------- aq convert

@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("kind, words", [("Q8_0", ("--bits", "8", "--symmetric")),
                                         ("Q4_0", ("--bits", "4", "--symmetric")),
                                         ("Q4_1", ("--bits", "4"))])
def test_convert_keeps_every_number(aq, tmp_path, kind, words, group):
    """Groups of more than 32 become blocks that have the same parameters, the short last one too."""
    rng = np.random.default_rng(8)
    weights = {"block.a.weight": rng.standard_normal((48, 96)).astype(np.float32) * 0.05,
               "block.a.bias": rng.standard_normal(48).astype(np.float32)}
    write(tmp_path / "m.safetensors", weights)
    native, file, back = (tmp_path / name for name in ("n.safetensors", "g.gguf", "b.safetensors"))
    run(aq, "quantize", tmp_path / "m.safetensors", native, "--group-size", group, "--quiet", *words)
    run(aq, "convert", native, file, "--format", "gguf")
    assert fields(file)["general.file_type"] == CHOICES[kind]
    run(aq, "convert", file, back, "--format", "native")
    run(aq, "dequantize", native, tmp_path / "d.safetensors", "--quiet")
    decoded, ours = plain(tmp_path / "d.safetensors"), tensors(file)
    assert ours["block.a.weight"][0] == kind
    for name, values in decoded.items():
        assert np.array_equal(ours[name][1].view(np.uint32), values.view(np.uint32)), name
    run(aq, "dequantize", back, tmp_path / "e.safetensors", "--quiet")
    for name, values in plain(tmp_path / "e.safetensors").items():
        assert np.array_equal(values.view(np.uint32), decoded[name].view(np.uint32)), name


def test_convert_refuses_what_would_be_rounded(aq, digits, tmp_path):
    run(aq, "quantize", digits, tmp_path / "n", "--quiet", "--bits", "8")
    told = run(aq, "convert", tmp_path / "n", tmp_path / "g.gguf", "--format", "gguf", status=1)
    assert "GGUF's type of 8 bits has no zero points" in told
    told = run(aq, "convert", tmp_path / "n", tmp_path / "g", "--format", "gguf", status=1)
    assert "ends in .gguf" in told
    run(aq, "quantize", digits, tmp_path / "k.gguf", "--format", "gguf", "--bits", "2", "--quiet")
    told = run(aq, "convert", tmp_path / "k.gguf", tmp_path / "n2", "--format", "native", status=1)
    assert "its code Q2_K has levels that no other format holds" in told
    flux = {f"transformer_blocks.0.attn.{part}_proj.weight": np.ones((32, 64), np.float32)
            for part in ("add_q", "add_k", "add_v")}
    flux["single_transformer_blocks.0.proj_mlp.weight"] = np.ones((32, 64), np.float32)
    write(tmp_path / "f.safetensors", flux)
    run(aq, "quantize", tmp_path / "f.safetensors", tmp_path / "fn.safetensors", "--group-size", "32",
        "--quiet")
    told = run(aq, "convert", tmp_path / "fn.safetensors", tmp_path / "f.gguf", "--format", "gguf",
               status=1)
    assert "names of the original checkpoint" in told
    assert not (tmp_path / "f.gguf").exists() and not (tmp_path / "g.gguf").exists()
