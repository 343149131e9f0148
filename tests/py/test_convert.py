"""aq convert: the same weights in another format, to the bit, or a refusal that names the layer."""
import json
import shutil

import numpy as np
import pytest

import dit
from aq_reader import read, read_container
from tool_models import (bad, files_of, gaussian, good, good_json, header_of, llm_tensors, plain_folder,
                         sharded_folder)


def values(aq, path, work, dtype="f32"):
    good(aq, "dequantize", path, work, "--dtype", dtype, "--overwrite")
    files = [work] if work.is_file() else sorted(work.glob("*.safetensors"))
    return {name: array for file in files
            for name, (_, array) in read_container(file)[0].items()}


def same(first, second):
    assert first.keys() == second.keys() and first
    for name in first:
        assert np.array_equal(first[name], second[name]), name


@pytest.fixture(scope="module")
def models(aq, tmp_path_factory):
    """A sharded F16 model, quantized in several ways."""
    folder = tmp_path_factory.mktemp("convert")
    sharded_folder(folder / "m", llm_tensors())
    flags = {"symmetric": ["--symmetric"], "affine": [], "q8": ["--parameter-bits", "8"],
             "ct": ["--format", "compressed-tensors"],
             "ct-symmetric": ["--format", "compressed-tensors", "--symmetric"]}
    for name, more in flags.items():
        good(aq, "quantize", folder / "m", folder / name, "--group-size", "64", "--layer-bits",
             "*up_proj*=8", *more)
    return folder


def test_native_symmetric_to_compressed_tensors_and_back(aq, models, tmp_path):
    good(aq, "convert", models / "symmetric", tmp_path / "ct", "--format", "compressed-tensors")
    expected = values(aq, models / "symmetric", tmp_path / "a")
    same(expected, values(aq, tmp_path / "ct", tmp_path / "b"))
    config = json.loads((tmp_path / "ct/config.json").read_text())["quantization_config"]
    assert config["quant_method"] == "compressed-tensors"
    assert sorted(group["weights"]["num_bits"] for group in config["config_groups"].values()) == [4, 8]
    assert "lm_head" in config["ignore"]
    index = json.loads((tmp_path / "ct/model.safetensors.index.json").read_text())["weight_map"]
    assert index == {name: file.name for file in (tmp_path / "ct").glob("*.safetensors")
                     for name in header_of(file) if name != "__metadata__"}
    good(aq, "convert", tmp_path / "ct", tmp_path / "back", "--format", "native")
    same(expected, values(aq, tmp_path / "back", tmp_path / "c"))
    before = {name for file in (models / "symmetric").glob("*.safetensors") for name in header_of(file)}
    after = {name for file in (tmp_path / "back").glob("*.safetensors") for name in header_of(file)}
    assert before == after
    assert good(aq, "inspect", tmp_path / "back", "--verify")
    for file in (tmp_path / "back").glob("*.safetensors"):
        read(file)  # the reader of the format that NumPy is, checksums included


@pytest.mark.parametrize("name", ["ct", "ct-symmetric"])
def test_compressed_tensors_to_native(name, aq, models, tmp_path):
    """Integer zero points become minimums that are exact."""
    good(aq, "convert", models / name, tmp_path / "n", "--format", "native")
    same(values(aq, models / name, tmp_path / "a"), values(aq, tmp_path / "n", tmp_path / "b"))
    codes = {tensor["code"] for tensor in good_json(aq, "inspect", tmp_path / "n")["tensors"]
             if "bits" in tensor}
    assert codes == {"symmetric" if "symmetric" in name else "affine"}
    good(aq, "convert", tmp_path / "n", tmp_path / "again", "--format", "compressed-tensors")
    same(values(aq, models / name, tmp_path / "a"), values(aq, tmp_path / "again", tmp_path / "c"))


@pytest.mark.parametrize("name", ["symmetric", "affine", "q8", "ct", "ct-symmetric", "m"])
def test_to_arrow_and_back(name, aq, models, tmp_path):
    shown = good_json(aq, "convert", models / name, tmp_path / "t.arrow", "--format", "arrow")
    assert shown["format"] == "arrow"
    if name == "m":
        assert len(good_json(aq, "inspect", tmp_path / "t.arrow")["tensors"]) == len(llm_tensors())
        return
    expected = values(aq, models / name, tmp_path / "a")
    same(expected, values(aq, tmp_path / "t.arrow", tmp_path / "b.safetensors"))
    good(aq, "convert", tmp_path / "t.arrow", tmp_path / "n.safetensors", "--format", "native")
    same(expected, values(aq, tmp_path / "n.safetensors", tmp_path / "c.safetensors"))
    difference = good_json(aq, "diff", models / name, tmp_path / "t.arrow")
    assert all(layer["sqnr_db"] is None for layer in difference["layers"])


def test_refusals(aq, models, tmp_path):
    """Each says which layer and why, and leaves nothing behind."""
    out = tmp_path / "out"
    message = bad(aq, "convert", models / "affine", out, "--format", "compressed-tensors")
    assert "minimums are no whole numbers of steps" in message and ".weight" in message
    message = bad(aq, "convert", models / "symmetric", out, "--format", "gguf")
    assert "ends in .gguf" in message
    message = bad(aq, "convert", models / "m", out, "--format", "native")
    assert "no quantized layers" in message
    wide = {"a.weight": ("BF16", gaussian(3, 32, 128))}  # F16 scales are no numbers of BF16
    good(aq, "quantize", plain_folder(tmp_path / "bf16", wide), tmp_path / "bq", "--symmetric",
         "--group-size", "32")
    message = bad(aq, "convert", tmp_path / "bq", out, "--format", "compressed-tensors")
    assert "layer a.weight: a scale is no number of the model's dtype" in message
    odd = {"a.weight": gaussian(4, 8, 100, dtype="float16")}
    good(aq, "quantize", plain_folder(tmp_path / "odd", odd), tmp_path / "oq", "--symmetric",
         "--group-size", "32")
    message = bad(aq, "convert", tmp_path / "oq", out, "--format", "compressed-tensors")
    assert "no multiple of the group size" in message
    good(aq, "convert", models / "affine", tmp_path / "t.arrow", "--format", "arrow")
    message = bad(aq, "convert", tmp_path / "t.arrow", out, "--format", "compressed-tensors")
    assert "config.json" in message
    message = bad(aq, "convert", models / "affine", tmp_path / "t.arrow", "--format", "arrow")
    assert "exists" in message
    good(aq, "convert", models / "q8", tmp_path / "t.arrow", "--format", "arrow", "--overwrite")
    before = files_of(models / "q8")
    bad(aq, "convert", models / "q8", models / "q8/inside", "--format", "native")
    assert files_of(models / "q8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bf16", "bq", "odd", "oq", "t.arrow"]


# ---------------------------------------------------------------- every pair of formats

def grid_tensors():
    """Weights that lie on a grid of 16 steps, both ends in every group, 0 a step: scales are powers
    of two and minimums whole numbers of them, in every format."""
    random = np.random.default_rng(5)
    tensors = {}
    for name in ("q_proj", "k_proj"):
        codes = random.integers(0, 16, (64, 8, 32))
        codes[:, :, 0], codes[:, :, 31] = 0, 15
        zero = random.integers(1, 15, (64, 8, 1))
        exponent = random.integers(5, 9, (64, 8, 1))
        tensors[f"model.layers.0.self_attn.{name}.weight"] = (
            (codes - zero) * 0.5**exponent).reshape(64, 256).astype("float16")
    return tensors


NO = {"whole": "minimums are no whole numbers of steps", "f16": "no F16 number",
      "zeros": "8 bits has no zero points", "two": "GGUF's type of 2 bits",
      "code": "levels that no other format holds", "columns": "no columns for its code",
      "type": "GGUF has no type for its code"}
SMALL = ["--group-size", "32"]
# start: (model, words of `quantize`, {format: what its layers are there, or why they cannot be})
STARTS = {
    "symmetric-8": ("m", ["--bits", 8, "--symmetric", *SMALL],
                    {"native": "symmetric", "gguf": "Q8_0", "compressed-tensors": "symmetric"}),
    "symmetric-4": ("m", ["--symmetric", *SMALL],
                    {"native": "symmetric", "gguf": "Q4_0", "compressed-tensors": "symmetric"}),
    "symmetric-128": ("m", ["--symmetric"],
                      {"native": "symmetric", "gguf": "Q4_0", "compressed-tensors": "symmetric"}),
    "symmetric-2": ("m", ["--symmetric", "--bits", 2, *SMALL],
                    {"native": "symmetric", "gguf": NO["two"], "compressed-tensors": "symmetric"}),
    "affine-8": ("m", ["--bits", 8, *SMALL],
                 {"native": "affine", "gguf": NO["zeros"], "compressed-tensors": NO["whole"]}),
    "affine-4": ("m", SMALL,
                 {"native": "affine", "gguf": "Q4_1", "compressed-tensors": NO["whole"]}),
    "affine-64": ("m", ["--group-size", "64"],
                  {"native": "affine", "gguf": "Q4_1", "compressed-tensors": NO["whole"]}),
    "eight-bit-parameters": ("m", ["--parameter-bits", 8, *SMALL],
                             {"native": "affine", "gguf": NO["f16"],
                              "compressed-tensors": NO["whole"]}),
    "r2q": ("m", ["--bits", 2, "--method", "r2q"],
            {"native": NO["code"], "arrow": NO["columns"], "gguf": NO["type"],
             "compressed-tensors": NO["code"]}),
    "trellis": ("m", ["--bits", 4, "--method", "trellis", "--trellis-states", 256],
                {"native": NO["code"], "arrow": NO["columns"], "gguf": NO["type"],
                 "compressed-tensors": NO["code"]}),
    "grid": ("grid", SMALL,
             {"native": "affine", "gguf": "Q4_1", "compressed-tensors": "zero_point"}),
    "ct-4": ("m", ["--format", "compressed-tensors", *SMALL],
             {"native": "affine", "gguf": NO["f16"], "compressed-tensors": "zero_point"}),
    "ct-grid": ("grid", ["--format", "compressed-tensors", *SMALL],
                {"native": "affine", "gguf": "Q4_1", "compressed-tensors": "zero_point"}),
    "ct-symmetric-8": ("m", ["--format", "compressed-tensors", "--bits", 8, "--symmetric", *SMALL],
                       {"native": "symmetric", "gguf": "Q8_0", "compressed-tensors": "symmetric"}),
    "ct-symmetric-4": ("m", ["--format", "compressed-tensors", "--symmetric", *SMALL],
                       {"native": "symmetric", "gguf": "Q4_0", "compressed-tensors": "symmetric"}),
    "Q8_0": ("m", ["--format", "gguf", "--gguf-type", "Q8_0"],
             {"native": "symmetric", "gguf": "Q8_0", "compressed-tensors": "symmetric"}),
    "Q4_0": ("m", ["--format", "gguf", "--gguf-type", "Q4_0"],
             {"native": "symmetric", "gguf": "Q4_0", "compressed-tensors": "symmetric"}),
    "Q4_1": ("m", ["--format", "gguf", "--gguf-type", "Q4_1"],
             {"native": "affine", "gguf": "Q4_1", "compressed-tensors": NO["whole"]}),
    "Q4_1-grid": ("grid", ["--format", "gguf", "--gguf-type", "Q4_1"],
                  {"native": "affine", "gguf": "Q4_1", "compressed-tensors": "zero_point"}),
    "Q4_K": ("m", ["--format", "gguf", "--gguf-type", "Q4_K"],
             {"native": "affine", "gguf": "Q4_K", "compressed-tensors": NO["whole"]}),
    "Q2_K": ("m", ["--format", "gguf", "--gguf-type", "Q2_K"],
             {"native": NO["code"], "arrow": NO["columns"], "gguf": "Q2_K",
              "compressed-tensors": NO["code"]}),
}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder, layer = tmp_path_factory.mktemp("pairs"), "model.layers.0."
    sharded_folder(folder / "m", {name: gaussian(i, *shape, dtype="float16") for i, (name, shape) in enumerate({
        "model.embed_tokens.weight": (16, 256), layer + "self_attn.q_proj.weight": (32, 256),
        layer + "mlp.down_proj.weight": (32, 512), "model.norm.weight": (256,),
        "lm_head.weight": (16, 256)}.items())})
    plain_folder(folder / "grid", grid_tensors())
    return folder


def converted(aq, source, folder, format, config):
    """The path of the result; GGUF comes to lie beside a config.json, for what follows."""
    folder.mkdir()
    out = {"gguf": folder / "x.gguf", "arrow": folder / "x.arrow"}.get(format, folder / "x")
    good(aq, "convert", source, out, "--format", format)
    if format != "gguf":
        return out
    shutil.copy(config, folder / "config.json")
    return folder


def codes_of(aq, path):
    return {x["code"] for x in good_json(aq, "inspect", path)["tensors"] if "bits" in x}


@pytest.mark.parametrize("start", STARTS)
def test_every_pair(start, aq, originals, tmp_path):
    """From each start into each format, and from each of those on into each: the same values to the
    bit, the code that is expected, or the reason that is."""
    model, words, targets = STARTS[start]
    config = originals / model / "config.json"
    good(aq, "quantize", originals / model, tmp_path / "start", "--min-accuracy", 0, *words)
    expected = values(aq, tmp_path / "start", tmp_path / "values")
    targets = {"arrow": targets["native"], **targets}

    def all_from(source, before, deeper):
        for format, outcome in targets.items():
            if outcome == "Q4_K" and before not in ("start", "gguf"):
                outcome = NO["f16"]  # its scales are products of two numbers
            refused = outcome in NO.values()
            if before == "arrow" and format == "compressed-tensors" and not refused:
                outcome, refused = "has no config.json", True
            out = tmp_path / f"{before}-{format}"
            if refused:
                name = out.with_suffix(".gguf") if format == "gguf" else out
                message = bad(aq, "convert", source, name, "--format", format)
                assert outcome in message or "has no config.json" in message, (before, format)
                assert not name.exists()
                continue
            path = converted(aq, source, out, format, config)
            same(expected, values(aq, path, tmp_path / f"v-{before}-{format}"
                                  if path.is_dir() else out / "v.safetensors"))
            found = codes_of(aq, path)
            if format == "arrow" and codes_of(aq, source) == {"zero_point"}:
                outcome = "zero_point"  # the table keeps whole zero points
            assert found == {outcome}, (before, format)
            if deeper:
                all_from(path, format, False)
    all_from(tmp_path / "start", "start", True)


def test_compressed_tensors_from_gguf(aq, originals, tmp_path):
    """The config tells what the layers are, the scales are the model's dtype, or it is refused."""
    good(aq, "quantize", originals / "m", tmp_path / "g", "--format", "gguf", "--gguf-type", "Q8_0")
    good(aq, "convert", tmp_path / "g", tmp_path / "ct", "--format", "compressed-tensors")
    config = json.loads((tmp_path / "ct/config.json").read_text())["quantization_config"]
    (_, group), = config["config_groups"].items()
    assert group["weights"] == {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "group",
                                "group_size": 32, "dynamic": False}
    assert set(config["ignore"]) == {"model.embed_tokens", "lm_head"}
    tensors, metadata = read_container(next((tmp_path / "ct").glob("*.safetensors")))
    assert metadata["format"] == "pt"
    stored = {name for name in tensors if "proj" in name}
    layers = {target + ".weight" for target in group["targets"]}
    assert stored == {layer + part for layer in layers for part in ("_packed", "_scale", "_shape")}
    assert all(tensors[layer + "_scale"][0] == "F32" for layer in layers)
    for dtype, outcome in (("float16", "F16"), ("float32", "F32"), ("bfloat16", None)):
        text = json.loads((originals / "m/config.json").read_text())
        (tmp_path / "g/config.json").write_text(json.dumps({**text, "torch_dtype": dtype}))
        out = tmp_path / dtype
        if not outcome:
            message = bad(aq, "convert", tmp_path / "g", out, "--format", "compressed-tensors")
            assert "no number of the model's dtype" in message and not out.exists()
            continue
        good(aq, "convert", tmp_path / "g", out, "--format", "compressed-tensors")
        tensors, _ = read_container(next(out.glob("*.safetensors")))
        assert {tensors[layer + "_scale"][0] for layer in layers} == {outcome}


def test_time_groups_go_with_the_layer(aq, digits, tmp_path):
    """Native and Arrow hold them; the others have no place for them, and say so."""
    good(aq, "quantize", digits, tmp_path / "q", "--calibration",
         dit.REFERENCE / "activations.safetensors", "--symmetric", "--group-size", "32",
         "--set", "enable_spatial=false")
    good(aq, "convert", tmp_path / "q", tmp_path / "n", "--format", "native")
    first, second = (dit.load(next((tmp_path / name / "transformer").glob("*.safetensors")))
                     for name in ("q", "n"))
    assert sum("aq_act" in name for name in first) == 84
    same(first, second)
    message = bad(aq, "convert", tmp_path / "q", tmp_path / "g.gguf", "--format", "gguf")
    assert "GGUF has no place for its time groups" in message
    message = bad(aq, "convert", tmp_path / "q", tmp_path / "c", "--format", "compressed-tensors")
    assert "no place for its time groups" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n", "q"]
