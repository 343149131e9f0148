"""aq convert: the same weights in another format, to the bit, or a refusal that names the layer."""
import json

import numpy as np
import pytest

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
    assert "GGUF" in message
    good(aq, "quantize", models / "m", tmp_path / "x.gguf", "--format", "gguf")
    assert "blocks of a GGUF type" in bad(aq, "convert", tmp_path / "x.gguf", out, "--format", "arrow")
    (tmp_path / "x.gguf").unlink()
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
