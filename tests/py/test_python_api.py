"""The Python module: its surface, configs, exceptions, quantizing and reading back, compared with the
C tool and with the documents that programs of ArrowQuant V2 were written after."""
import copy
import inspect as python_inspect
import io
import math
import pickle
import re
import sys
import threading
import types

import numpy as np
import pytest

import gguf_bytes
from conftest import REPO
from tool_models import files_of, gaussian, good, good_json, llm_tensors, plain_folder, write_safetensors

# What document 003 lists, `new` being the constructor.
METHODS = ["quantize_diffusion_model", "validate_quality", "quantize_from_safetensors", "quantize",
           "quantize_arrow", "quantize_arrow_batch",
           "simple_test", "test_method", "get_markov_metrics", "quantize_batch",
           "quantize_batch_with_progress"]
EXCEPTIONS = ["QuantizationError", "ConfigurationError", "ValidationError", "ModelNotFoundError",
              "MetadataError", "ShapeMismatchError"]
RESULT = ["quantized_path", "compression_ratio", "cosine_similarity", "model_size_mb", "modality",
          "bit_width", "quantization_time_s"]


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch):
    for name in ("BIT_WIDTH", "NUM_TIME_GROUPS", "GROUP_SIZE", "MIN_ACCURACY", "ISA"):
        monkeypatch.delenv("ARROW_QUANT_" + name, raising=False)


# ---------------------------------------------------------------- surface

def test_surface(module):
    quantizer = module.ArrowQuantV2()
    assert set(METHODS) <= set(dir(quantizer))
    public = {name for name in dir(quantizer) if not name.startswith("_")}
    assert public == {*METHODS, "mode"}
    for name in METHODS:
        assert callable(getattr(quantizer, name)) and getattr(module.ArrowQuantV2, name).__doc__
    asynchronous = {name for name in dir(module.AsyncArrowQuantV2) if not name.startswith("_")}
    assert public - asynchronous == {"simple_test", "test_method"}


def test_alias_has_the_same_objects(module):
    import arrow_quant_v2
    for name in [*module.__all__, "open"]:
        assert getattr(arrow_quant_v2, name) is getattr(module, name), name
    for name in EXCEPTIONS:
        assert issubclass(getattr(arrow_quant_v2, name), Exception)


def test_docstrings_name_every_argument(module):
    """Args, Returns and Raises, and no argument is left out."""
    def callables(owner):
        for name, item in vars(owner).items():
            if not name.startswith("_") and isinstance(item, (types.FunctionType, classmethod)):
                yield name, getattr(owner, name)
    found = 0
    for owner in (module.ArrowQuantV2, module.AsyncArrowQuantV2, module.DiffusionQuantConfig,
                  sys.modules["arrowquant._quantizer"], sys.modules["arrowquant._model"]):
        for name, function in callables(owner):
            if function.__module__.split(".")[0] != "arrowquant":
                continue
            text = python_inspect.getdoc(function)
            assert text, (owner, name)
            arguments = [a for a in python_inspect.signature(function).parameters if a != "self"]
            for argument in arguments:
                kind = python_inspect.signature(function).parameters[argument].kind
                mark = "**" if kind == python_inspect.Parameter.VAR_KEYWORD else ""
                assert re.search(rf"^    {re.escape(mark + argument)}: ", text, re.M) or \
                    not arguments or name == "record", (owner, name, argument)
            found += 1
    assert found > 25


def test_modes(module):
    assert module.ArrowQuantV2(mode="base").mode == "base"
    assert repr(module.ArrowQuantV2()) == "ArrowQuantV2(mode='diffusion')"
    with pytest.raises(ValueError, match="'diffusion' or 'base', found 'turbo'"):
        module.ArrowQuantV2(mode="turbo")
    with pytest.raises(ValueError):
        module.AsyncArrowQuantV2("turbo")


def test_numpy_is_not_needed(python):
    """Neither to import the module nor to use it."""
    out = python("import sys; sys.modules['numpy'] = None\n"
                 "import arrowquant\n"
                 "t = arrowquant.ArrowQuantV2().quantize({'a': [[1.0, 2.0] * 32] * 3}, 8)['a']\n"
                 "print(t.shape, [round(x, 3) for x in memoryview(t).tolist()[2][:2]])")
    assert out == "(3, 64) [1.0, 2.0]\n"


def test_self_test(module):
    quantizer = module.ArrowQuantV2()
    assert quantizer.simple_test() is True
    assert re.fullmatch(r"arrowquant \d+\.\d+\.\d+ (scalar|avx2|avx512|neon)", quantizer.test_method())


# ---------------------------------------------------------------- config

PROFILES = {"edge": (2, 5, 256, .65, 32, True, False, True),
            "local": (4, 10, 128, .85, 128, True, True, False),
            "cloud": (8, 20, 64, .95, 512, True, True, False)}


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles(module, profile):
    config = module.DiffusionQuantConfig.from_profile(profile)
    assert (config.bit_width, config.num_time_groups, config.group_size, config.min_accuracy,
            config.calibration_samples, config.enable_time_aware, config.enable_spatial,
            config.enable_streaming) == PROFILES[profile]
    assert config == module.DiffusionQuantConfig(deployment_profile=profile)
    assert config.deployment_profile == profile


def test_every_field_is_there(module, aq):
    """Keyword, property and value agree with what the C tool says of the same table."""
    text = good(aq, "config", "--profile", "edge")
    names = re.findall(r"^\| `([\w.]+)` ", (REPO / "docs/CONFIG.md").read_text(), re.M)
    config = module.DiffusionQuantConfig(deployment_profile="edge")
    assert list(config.to_dict()) == [name.replace(".", "_") for name in names]
    assert config.to_yaml() == text
    for name, value in config.to_dict().items():
        assert getattr(config, name) == value
        again = module.DiffusionQuantConfig(**{name: value})
        assert getattr(again, name) == value
        assert getattr(type(config), name).__doc__


def test_profile_first_whatever_the_order(module):
    config = module.DiffusionQuantConfig(bit_width=4, num_threads=1, deployment_profile="edge")
    assert (config.bit_width, config.group_size) == (4, 256)
    config.deployment_profile = "cloud"
    assert (config.bit_width, config.group_size, config.num_threads) == (4, 64, 1)


def test_seed_order_of_arguments(module):
    config = module.DiffusionQuantConfig(4, "text", 10, 128, True, True, .85, 128, "local")
    assert (config.modality, config.calibration_samples) == ("text", 128)


def test_yaml_environment_pickle(module, tmp_path, monkeypatch):
    config = module.DiffusionQuantConfig(
        bit_width=2, layer_bits={"a.*": 8, 'b"[0-9]': 16}, sensitive_layers=("x", "ä"),
        min_sqnr_db=np.float32(12.5), thermodynamic_boundary_smoothing_window_size=np.int64(3))
    config.to_yaml(tmp_path / "c.yaml")
    loaded = module.DiffusionQuantConfig.from_yaml(str(tmp_path / "c.yaml"))
    assert loaded == config and loaded.layer_bits == {"a.*": 8, 'b"[0-9]': 16}
    for twin in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), config.copy()):
        assert twin == config and twin is not config and twin._explicit() == config._explicit()
    assert config.copy(bit_width=8) != config
    assert eval(repr(config), vars(module)) == config
    monkeypatch.setenv("ARROW_QUANT_BIT_WIDTH", "8")
    config.apply_env_overrides()
    assert config.bit_width == 8
    monkeypatch.setenv("ARROW_QUANT_BIT_WIDTH", "9")
    with pytest.raises(module.ConfigurationError, match="ARROW_QUANT_BIT_WIDTH.*2, 3, 4 or 8.*9"):
        config.apply_env_overrides()
    assert config.bit_width == 8
    with pytest.raises(TypeError):
        hash(config)
    assert config != 3 and not config == "x"


@pytest.mark.parametrize("field, value, status", [
    ("bit_width", 5, "bit_width"), ("num_time_groups", 101, "time_groups"),
    ("num_time_groups", 0, "time_groups"), ("group_size", 100, "group_size"),
    ("min_accuracy", 1.5, "accuracy"), ("min_accuracy", math.nan, "accuracy"),
    ("modality", "video", "configuration"), ("deployment_profile", "moon", "configuration"),
    ("layer_bits", {"a": 5}, "bit_width"), ("bit_width", "4", "bit_width"),
    ("bit_width", 4.5, "bit_width"), ("enable_spatial", 1, "configuration"),
    ("sensitive_layers", "name", "configuration"), ("num_threads", -1, "configuration")])
def test_bad_values(module, field, value, status):
    with pytest.raises(module.ConfigurationError) as caught:
        module.DiffusionQuantConfig(**{field: value})
    assert caught.value.status == status and field in str(caught.value)
    assert caught.value.hint and caught.value.hint in str(caught.value)
    config = module.DiffusionQuantConfig()
    with pytest.raises(ValueError):
        setattr(config, field, value)
    assert config == module.DiffusionQuantConfig()


def test_unknown_fields(module, tmp_path):
    with pytest.raises(TypeError, match="'bit_widht'; did you mean 'bit_width'"):
        module.DiffusionQuantConfig(bit_widht=4)
    with pytest.raises(TypeError):
        module.DiffusionQuantConfig().copy(nonsense=1)
    (tmp_path / "c.yaml").write_text("group_size: 128\nbit_widht: 4\n")
    with pytest.raises(module.ConfigurationError, match="c.yaml:2.*bit_width"):
        module.DiffusionQuantConfig.from_yaml(tmp_path / "c.yaml")
    with pytest.raises(module.QuantizationError, match="none.yaml"):
        module.DiffusionQuantConfig.from_yaml(tmp_path / "none.yaml")


# ---------------------------------------------------------------- exceptions

def test_exceptions(module, digits, tmp_path):
    quantizer = module.ArrowQuantV2()
    cases = [
        (module.ModelNotFoundError, "model_not_found", lambda: quantizer.quantize_diffusion_model(
            tmp_path / "nowhere", tmp_path / "out")),
        (module.QuantizationError, "exists", lambda: quantizer.quantize_diffusion_model(
            digits, tmp_path)),
        (module.ConfigurationError, "bit_width", lambda: quantizer.quantize({"a": [1.0]}, 5)),
        (module.QuantizationError, "quantization", lambda: quantizer.quantize(
            {"good": [1.0], "bad.weight": [[1.0, 2.0], [3.0, math.nan]]})),
    ]
    for kind, status, call in cases:
        with pytest.raises(kind) as caught:
            call()
        problem = caught.value
        assert problem.status == status and problem.hint in str(problem) and problem.hint
        assert isinstance(problem, module.ArrowQuantError)
        twin = pickle.loads(pickle.dumps(problem))
        assert type(twin) is kind and str(twin) == str(problem) and twin.status == status
    assert problem.tensor == "bad.weight" and problem.offset == 3
    assert "bad.weight" in str(problem)
    assert issubclass(module.ModelNotFoundError, FileNotFoundError)
    for name in EXCEPTIONS:  # siblings: catching one never catches another
        others = [getattr(module, other) for other in EXCEPTIONS if other != name]
        assert not issubclass(getattr(module, name), tuple(others))


def test_metadata_shape_validation_errors(module, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(module.MetadataError, match="bad.safetensors"):
        module.load_model(tmp_path / "bad.safetensors")
    a = plain_folder(tmp_path / "a", {"layers.0.w.weight": gaussian(1, 64, 64)})
    b = plain_folder(tmp_path / "b", {"layers.0.w.weight": gaussian(1, 64, 32)})
    with pytest.raises(module.ShapeMismatchError, match="layers.0.w.weight") as caught:
        module.compare_models(a, b)
    assert caught.value.tensor == "layers.0.w.weight"
    with pytest.raises(module.ValidationError, match="layers.0.w.weight"):
        module.quantize_diffusion_model(
            a, tmp_path / "out", module.DiffusionQuantConfig(bit_width=2, min_accuracy=.9999,
                                                             fail_fast=True))
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- models

@pytest.mark.parametrize("options, flags", [
    ({}, []),
    ({"deployment_profile": "edge"}, ["--profile", "edge"]),
    ({"bit_width": 8, "group_size": 32, "symmetric": True, "parameter_bits": 8},
     ["--bits", "8", "--group-size", "32", "--symmetric", "--set", "parameter_bits=8"]),
])
def test_models_equal_those_of_the_tool(module, aq, digits, tmp_path, options, flags):
    """Every byte of every file."""
    result = module.ArrowQuantV2().quantize_diffusion_model(
        digits, tmp_path / "python", module.DiffusionQuantConfig(**options))
    told = good_json(aq, "quantize", digits, tmp_path / "tool", *flags)
    assert files_of(tmp_path / "python") == files_of(tmp_path / "tool")
    assert set(RESULT) <= set(result)
    for key in RESULT[1:-1]:
        assert result[key] == told[key], key
    assert result["quantized_path"] == str(tmp_path / "python")
    assert len(result["layers"]) == result["layers_quantized"] + result["layers_kept"]
    checked = module.ArrowQuantV2().validate_quality(digits, tmp_path / "python")
    # The edge profile's trellises are measured as they are coded, rotated, and validated rotated back in float32.
    rounding = 1e-8 if "deployment_profile" in options else 1e-9
    assert checked["passed"] and checked["cosine_similarity"] == pytest.approx(
        result["cosine_similarity"], abs=rounding)
    assert checked["compression_ratio"] == result["compression_ratio"]
    assert len(checked["per_layer_accuracy"]) == result["layers_quantized"]
    assert min(checked["per_layer_accuracy"].values()) == checked["min_cosine_similarity"]


def test_from_safetensors(module, tmp_path):
    write_safetensors(tmp_path / "lora.safetensors", llm_tensors(1))
    for source, target in [("lora.safetensors", "out.safetensors"), ("lora.safetensors", "folder")]:
        result = module.ArrowQuantV2().quantize_from_safetensors(
            str(tmp_path / source), tmp_path / target, module.DiffusionQuantConfig(bit_width=8))
        assert result["bit_width"] == 8 and result["layers_quantized"] > 0
        assert (tmp_path / target).is_file() == target.endswith("s")


def test_base_mode(module, digits, tmp_path):
    """What needs timesteps or channels is off, even when it was asked for."""
    config = module.DiffusionQuantConfig(enable_time_aware=True, enable_spatial=True)
    module.ArrowQuantV2("base").quantize_diffusion_model(digits, tmp_path / "base", config)
    module.ArrowQuantV2().quantize_diffusion_model(digits, tmp_path / "plain")
    base, plain = files_of(tmp_path / "base"), files_of(tmp_path / "plain")
    weights = [name for name in plain if name.endswith(".safetensors")]
    assert weights and all(base[name] == plain[name] for name in weights)
    assert config.enable_spatial is True  # the caller's is not touched


def test_plain_weights_and_sources_are_never_touched(module, digits, tmp_path):
    before = files_of(digits)
    module.quantize_diffusion_model(digits, tmp_path / "out")
    assert files_of(digits) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_load_model(module, aq, digits, tmp_path):
    module.quantize_diffusion_model(digits, tmp_path / "q")
    module.dequantize_model(tmp_path / "q", tmp_path / "plain", dtype="float32")
    told = {row["name"]: row for row in good_json(aq, "inspect", tmp_path / "q")["tensors"]}
    load_file = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed").load_file
    plain = load_file(next((tmp_path / "plain").rglob("*.safetensors")))
    with module.load_model(tmp_path / "q") as model:
        assert isinstance(model, module.Model) and model.quantized and model.modality == "image"
        assert set(model) == set(plain) == set(told) and len(model) == len(plain)
        assert model.verify() > len(model)
        kinds = set()
        for name, tensor in model.items():
            kinds.add(type(tensor))
            assert tensor.shape == plain[name].shape
            np.testing.assert_array_equal(tensor.dequantize().numpy(), plain[name])
            assert model.describe(name)["bytes"] == told[name]["bytes"]
            if isinstance(tensor, module.QuantizedTensor):
                np.testing.assert_array_equal(np.asarray(tensor), plain[name])
                assert tensor.bit_width == told[name]["bits"]
                assert tensor.cosine_similarity == told[name]["cosine_similarity"]
        assert kinds == {module.Array, module.QuantizedTensor}
        with pytest.raises(KeyError, match="no.such"):
            model["no.such"]
        assert "no.such" not in model and 3 not in model
        last = model[name]
    np.testing.assert_array_equal(last.dequantize().numpy(), plain[name])  # outlives the model
    with pytest.raises(ValueError, match="closed"):
        model[name]
    assert module.open is module.load_model
    report = module.inspect(tmp_path / "q", verify=True)
    assert report["verified"] > 0 and report["modality"] == "image"
    assert {row["name"] for row in report["tensors"]} == set(plain)
    assert 4 < report["bits_per_weight"] < 5


def test_a_damaged_file_is_told(module, digits, tmp_path):
    module.quantize_diffusion_model(digits, tmp_path / "q")
    path = next((tmp_path / "q").rglob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    with pytest.raises(module.MetadataError) as caught:
        module.inspect(tmp_path / "q", verify=True)
    assert caught.value.status == "corrupt"


# ---------------------------------------------------------------- tensors

def values(tensor):
    """The dequantized values from codes and scales alone, in float64."""
    codes = np.asarray(tensor.codes)
    rows, cols = codes.shape[0], int(np.prod(tensor.shape)) // codes.shape[0]
    per = 8 // tensor.bit_width
    unpacked = np.stack([codes >> (tensor.bit_width * i) & (2 ** tensor.bit_width - 1)
                         for i in range(per)], -1).reshape(rows, -1)[:, :cols]
    def wide(parameters):
        return np.repeat(np.asarray(parameters, "f8").reshape(rows, -1), tensor.group_size, 1)[:, :cols]
    return (wide(tensor.scales) * (unpacked - wide(tensor.zero_points))).reshape(tensor.shape)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("options", [{}, {"symmetric": True}, {"parameter_bits": 8},
                                     {"symmetric": True, "parameter_bits": 8}, {"group_size": 32}])
def test_tensors(module, bits, options):
    weights = {"a": gaussian(1, 48, 200), "b": gaussian(2, 16, 3, 5, 7), "c": gaussian(3, 100)}
    config = module.DiffusionQuantConfig(**options)
    made = module.ArrowQuantV2().quantize(weights, bits, config=config)
    for name, tensor in made.items():
        assert tensor.shape == weights[name].shape and tensor.bit_width == bits
        back = np.asarray(tensor)
        assert back.dtype == np.float32
        np.testing.assert_allclose(values(tensor), back, rtol=1e-5, atol=1e-6)
        cosine = np.vdot(back, weights[name]) / np.linalg.norm(back) / np.linalg.norm(weights[name])
        assert tensor.cosine_similarity == pytest.approx(float(cosine), abs=1e-5)
        assert tensor.max_error == pytest.approx(np.abs(back - weights[name]).max(), rel=1e-5)
        assert tensor.nbytes * 8 / tensor.size == pytest.approx(tensor.bits_per_weight)
        twin = pickle.loads(pickle.dumps(tensor))
        np.testing.assert_array_equal(np.asarray(twin), back)
        assert (twin.shape, twin.sqnr_db) == (tensor.shape, tensor.sqnr_db)


def test_tensors_equal_those_of_the_tool(module, aq, tmp_path):
    """Codes and parameters of a batch, bit for bit those that the tool stores."""
    weights = {f"blocks.{i}.ff.weight": gaussian(i, 64, 64 * (i + 1)) for i in range(6)}
    weights["blocks.9.tiny.weight"] = gaussian(9, 64, 128) * np.float32(1e-5)  # F32 parameters
    folder = plain_folder(tmp_path / "m", weights)
    good(aq, "quantize", folder, tmp_path / "q")
    with module.load_model(tmp_path / "q") as model:
        made = module.ArrowQuantV2().quantize(weights, 4)
        for name, tensor in made.items():
            stored = model[name]
            assert isinstance(stored, module.QuantizedTensor), name
            assert stored.codes == tensor.codes and stored.params == tensor.params
            assert stored.cosine_similarity == tensor.cosine_similarity
            assert (stored.parameter_type, stored.sqnr_db) == (tensor.parameter_type, tensor.sqnr_db)
        assert made["blocks.9.tiny.weight"].parameter_type == "F32"


def test_threads_do_not_change_a_bit(module):
    weights = {f"w{i}": gaussian(i, 37 + i, 513) for i in range(40)}
    weights["large"] = gaussian(99, 1024, 1024)
    made = [module.ArrowQuantV2().quantize(weights, 4, config=module.DiffusionQuantConfig(num_threads=n))
            for n in (1, 2, 7)]
    alone = {name: module.ArrowQuantV2().quantize({name: array}, 4)[name]
             for name, array in weights.items()}
    for name in weights:
        assert all(m[name].codes == alone[name].codes and m[name].params == alone[name].params
                   and m[name].sqnr_db == alone[name].sqnr_db for m in made)


CODES = {
    "affine": {}, "symmetric": {"symmetric": True}, "residual": {"method": "r2q", "bit_width": 2},
    "trellis": {"method": "trellis", "bit_width": 2, "trellis_states": 256},
    **{name: {"format": "gguf", "gguf_type": name} for name in ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q2_K")},
    "zero_point": {"format": "compressed-tensors", "group_size": 64},
    "symmetric BF16": {"format": "compressed-tensors", "group_size": 64, "symmetric": True},
}


@pytest.mark.parametrize("code", CODES)
def test_codes_by_their_names(module, tmp_path, code):
    """Whatever a file holds: its code's name, values, parameters, and a twin from pickle."""
    folder = plain_folder(tmp_path / "m", {"layers.0.w.weight": ("BF16", gaussian(1, 64, 512))})
    module.quantize_diffusion_model(folder, tmp_path / "q", module.DiffusionQuantConfig(**CODES[code]))
    with module.load_model(tmp_path / "q") as model:
        tensor = model["layers.0.w.weight"]
        told = model.describe("layers.0.w.weight")
    name = code.split()[0]
    assert tensor.code == told["code"] == name and f" {name}, " in repr(tensor)
    assert tensor.bit_width == told["bits"] and tensor.parameter_type == told["params"]
    assert tensor.parameter_type == ("BF16" if "format" in CODES[code] and name[0] not in "Q" else "F16")
    assert tensor.method == told["method"]
    back = np.asarray(tensor)
    assert np.vdot(back, gaussian(1, 64, 512)) > 0.9 * np.vdot(back, back) > 0
    blocks, params = name[0] == "Q", tensor.params.numpy()
    assert tensor.nbytes == tensor.codes.nbytes + tensor.params.nbytes and tensor.extra is None
    assert params.shape[:2] == (64, 512 // tensor.group_size) and (params.size == 0) == blocks
    if blocks or name == "residual":
        with pytest.raises(module.ConfigurationError, match=name):
            tensor.scales
    elif name != "trellis":
        np.testing.assert_allclose(values(tensor), back, rtol=1e-5, atol=1e-6)
    twin = pickle.loads(pickle.dumps(tensor))
    np.testing.assert_array_equal(np.asarray(twin), back)
    assert all(getattr(twin, member) == getattr(tensor, member) for member in (
        "code", "method", "dtype", "parameter_type", "bit_width", "group_size", "shape", "codes",
        "params"))


def test_code_that_is_not_decoded(module, tmp_path):
    """Q6_K: its name and its bytes."""
    (tmp_path / "m.gguf").write_bytes(gguf_bytes.image(
        [gguf_bytes.ARCH], [gguf_bytes.tensor("a", [2, 256], 14)], bytes(range(210)) * 2 + bytes(28)))
    with module.load_model(tmp_path / "m.gguf") as model:
        tensor = model["a"]
    assert (tensor.code, tensor.shape, tensor.codes.shape) == ("Q6_K", (2, 256), (2, 210))
    assert tensor.codes.tobytes() == bytes(range(210)) * 2 and tensor.params.nbytes == 0
    with pytest.raises(module.ArrowQuantError, match="Q6_K"):
        tensor.dequantize()
    with pytest.raises(TypeError, match="Q6_K"):
        pickle.dumps(tensor)


def test_batch_records(module):
    weights = {"layer1": gaussian(1, 8, 256), "layer2": gaussian(2, 4, 64)}
    result = module.ArrowQuantV2().quantize_batch(weights, bit_width=2)
    assert isinstance(result, dict) and list(result) == list(weights) and result.errors == {}
    record = result["layer1"]
    assert set(record) >= {"quantized_data", "scales", "zero_points", "shape", "bit_width"}
    assert record["shape"] == [8, 256] and record["bit_width"] == 2
    assert len(record["quantized_data"]) == 8 * 256 * 2 // 8
    assert bytes(record["quantized_data"]) == record["tensor"].codes.tobytes()
    assert record["quantized_data"] == bytes(record["quantized_data"])
    assert len(record["scales"]) == len(record["zero_points"]) == 16
    assert record["scales"].tolist() == [record["scales"][i] for i in range(16)]
    assert result["layer2"]["bit_width"] == 2


def test_continue_on_error(module):
    weights = {"a": gaussian(1, 4, 64), "bad": np.full((4, 64), np.inf, "f4"), "b": gaussian(2, 4, 64),
               "text": "nonsense", "ints": np.ones((4, 4), "i4")}
    quantizer = module.ArrowQuantV2()
    with pytest.raises(module.QuantizationError, match="bad"):
        quantizer.quantize_batch({name: weights[name] for name in ("a", "bad")})
    with pytest.raises(TypeError, match="text"):
        quantizer.quantize_batch(weights)
    with pytest.warns(RuntimeWarning, match="3 of 5 layers failed"):
        result = quantizer.quantize_batch(weights, continue_on_error=True)
    assert list(result) == ["a", "b"] and set(result.errors) == {"bad", "text", "ints"}
    assert result.errors["bad"].status == "quantization" and result.errors["bad"].tensor == "bad"
    assert isinstance(result.errors["text"], TypeError)


@pytest.mark.parametrize("array, text", [
    ([[1.0, 2.0], [3.0]], "ragged"), ([["x"]], "list"), (object(), "buffer"), (b"12345678", "'B'"),
    (np.zeros((2, 2), "i8"), "'l'"), (np.zeros((2, 2), "c16"), "'Zd'"), (None, "buffer")])
def test_what_is_refused(module, array, text):
    with pytest.raises((TypeError, ValueError), match=text) as caught:
        module.ArrowQuantV2().quantize({"layer": array})
    assert "layer" in str(caught.value)
    with pytest.raises(TypeError, match="mapping"):
        module.ArrowQuantV2().quantize([array])
    with pytest.raises(TypeError, match="str"):
        module.ArrowQuantV2().quantize({3: [1.0]})


@pytest.mark.parametrize("array", [[], [[]], np.zeros((0, 5), "f4"), np.zeros((5, 0), "f4"), [1.0],
                                   np.float32(3.5).reshape(()), np.zeros((7, 1), "f2")])
def test_empty_and_tiny(module, array):
    tensor = module.ArrowQuantV2().quantize({"x": array}, 8)["x"]
    assert tensor.shape == np.shape(array)
    np.testing.assert_array_equal(np.asarray(tensor), np.asarray(array, "f4"))
    assert pickle.loads(pickle.dumps(tensor)).shape == tensor.shape


def test_arrays(module):
    tensor = module.ArrowQuantV2().quantize({"x": gaussian(1, 6, 70)}, 4)["x"]
    array = tensor.dequantize()
    assert (array.shape, array.dtype, array.ndim, array.size, array.nbytes, array.readonly) == \
        ((6, 70), "float32", 2, 420, 1680, False)
    plain = np.asarray(array)
    assert plain.tolist() == array.tolist() and plain.tobytes() == array.tobytes()
    np.testing.assert_array_equal(np.asarray(array[2]), plain[2])
    np.testing.assert_array_equal(np.asarray(array[1:4]), plain[1:4])
    assert array[-1][5] == plain[-1, 5] and [row[0] for row in array] == plain[:, 0].tolist()
    with pytest.raises(IndexError):
        array[6]
    with pytest.raises(TypeError):
        array[::2]
    plain[0, 0] = 7  # one memory
    assert array[0][0] == 7
    half = array.dequantize("float16")
    np.testing.assert_array_equal(half.numpy(), plain.astype("f2"))
    assert half.dequantize("float16") is half and memoryview(half).format == "e"
    assert array != tensor.dequantize() and tensor.dequantize() == tensor.dequantize()
    assert tensor.codes.readonly
    assert not np.asarray(tensor.codes).flags.writeable
    with pytest.raises(ValueError, match="float64"):
        tensor.dequantize("float64")
    assert "QuantizedTensor (6, 70) affine, 4 bits, groups of 128" in repr(tensor)


# ---------------------------------------------------------------- progress

def test_progress(module, digits, tmp_path):
    seen = []
    module.ArrowQuantV2().quantize_diffusion_model(
        digits, tmp_path / "out", progress_callback=lambda *told: seen.append(told))
    fractions = [fraction for fraction, message in seen]
    assert fractions == sorted(fractions) and fractions[0] < 1 and fractions[-1] == 1
    assert all(isinstance(message, str) and message for _, message in seen)
    assert len(seen) <= 6  # first, phases, last: the run is shorter than the five seconds


def test_throttle(module, monkeypatch):
    """One call in five seconds, besides the first, each phase's and the last."""
    progress = sys.modules["arrowquant.progress"]
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    seen = []
    throttle = progress.Throttle(lambda fraction, message: seen.append((clock[0], fraction)))
    for tick in range(200):
        clock[0] = 100 + tick / 10
        throttle(tick / 200, "quantize" if tick < 170 else "copy", "x", tick, 200, 1.0, 1.0)
    throttle(1.0, "copy", "", 200, 200, 20.0, 0.0)
    throttle.finish()
    times = [time for time, _ in seen]
    assert times == pytest.approx([100, 105, 110, 115, 117, 119.9])
    assert seen[-1][1] == 1.0


def test_callbacks_that_raise(module, digits, tmp_path, monkeypatch):
    """Reported once, and the run is not disturbed."""
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    def bad(fraction, message):
        raise RuntimeError("from the callback")
    quantizer = module.ArrowQuantV2()
    quantizer.quantize_diffusion_model(digits, tmp_path / "a", progress_callback=bad)
    assert [str(problem) for problem in reported] == ["from the callback"]
    module.quantize_diffusion_model(digits, tmp_path / "b")
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    big = {f"w{i}": gaussian(i, 512, 512) for i in range(8)}
    result = quantizer.quantize_batch_with_progress(big, 4, bad)
    assert len(result) == 8 and len(reported) == 2


def test_batch_progress(module):
    seen = []
    class Often:
        interval = 0.0
        def __call__(self, fraction, message):
            seen.append((fraction, message, threading.current_thread()))
    weights = {f"w{i}": gaussian(i, 1024, 2048) for i in range(60)}
    result = module.ArrowQuantV2().quantize_batch_with_progress(weights, 4, Often())
    assert len(result) == 60 and len(seen) >= 3 and seen[-1][0] == 1.0
    assert [f for f, _, _ in seen] == sorted(f for f, _, _ in seen)
    assert {thread for _, _, thread in seen} == {threading.current_thread()}


def test_tqdm_helper(module):
    class Bar:
        moved, closed, text = 0.0, False, ""
        def update(self, n):
            self.moved += n
        def set_postfix_str(self, text, refresh=True):
            self.text = text
        def close(self):
            self.closed = True
    bar = Bar()
    with module.TqdmProgress(bar) as callback:
        module.ArrowQuantV2().quantize_batch_with_progress({"a": gaussian(1, 64, 64)}, 4, callback)
    assert bar.moved == pytest.approx(100) and bar.closed and bar.text
    pytest.importorskip("tqdm", reason="tqdm is not installed")
    shown = io.StringIO()
    with module.TqdmProgress(desc="layers", file=shown) as callback:
        module.ArrowQuantV2().quantize_batch_with_progress({"a": gaussian(1, 64, 64)}, 4, callback)
    assert callback.bar.n == pytest.approx(100) and "layers: 100%" in shown.getvalue()


# ---------------------------------------------------------------- the documents' programs

# Each program of documents 000 and 001, one after the other as they stand there, but for `[...]`, for
# which their readers put weights. Both model paths lead to the bundled model.
SEEDS = {
    "000": '''
from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig
ArrowQuantV2(mode="diffusion")

quantizer = ArrowQuantV2()
result = quantizer.quantize_diffusion_model(
    model_path="dream-7b/",
    output_path="dream-7b-int2/",
    config=DiffusionQuantConfig(bit_width=2)
)
print(sorted(result), result["bit_width"])

result = quantizer.validate_quality(
    original_path="dream-7b/",
    quantized_path="dream-7b-int2/"
)
print(sorted(result), result["passed"])

quantized = quantizer.quantize(
    weights={"layer1": WEIGHTS},
    bit_width=4
)
print(quantized["layer1"].shape, quantized["layer1"].bit_width)

config = DiffusionQuantConfig(
    bit_width=4,
    modality="text",
    num_time_groups=10,
    group_size=128,
    enable_time_aware=True,
    enable_spatial=True,
    min_accuracy=0.85,
    calibration_samples=128,
    deployment_profile="local"
)
print(config.modality, config.calibration_samples)

config = DiffusionQuantConfig.from_profile("edge")
print(config.group_size)

from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig

# Create quantizer
quantizer = ArrowQuantV2(mode="diffusion")

# Create config for edge deployment
config = DiffusionQuantConfig.from_profile("edge")

# Quantize model (will work once orchestrator is fully implemented)
result = quantizer.quantize_diffusion_model(
    model_path="models/dream-7b/",
    output_path="models/dream-7b-int2/",
    config=config
)

print(f"Compression ratio: {result['compression_ratio']:.2f}x")
print(f"Cosine similarity: {result['cosine_similarity']:.3f}")
print(f"Model size: {result['model_size_mb']:.1f} MB")
''',
    "001": '''
from arrow_quant_v2 import ArrowQuantV2, DiffusionQuantConfig

# Create quantizer
quantizer = ArrowQuantV2(mode="diffusion")

# Load configuration from profile
config = DiffusionQuantConfig.from_profile("edge")

# Or load from YAML
config = DiffusionQuantConfig.from_yaml("config.yaml")

# Quantize model with progress callback
def progress_callback(progress, message):
    print(f"Progress: {progress:.1%} - {message}")

result = quantizer.quantize_diffusion_model(
    model_path="dream-7b/",
    output_path="dream-7b-int2/",
    config=config,
    progress_callback=progress_callback
)

print(f"Compression ratio: {result['compression_ratio']:.1f}x")
print(f"Cosine similarity: {result['cosine_similarity']:.3f}")
print(f"Model size: {result['model_size_mb']:.1f} MB")
''',
}


@pytest.mark.parametrize("name, weights", [
    ("000", "[0.5, -0.25, 0.125, 1.0] * 64"), ("000", "np.linspace(-1, 1, 256, dtype='f4')"), ("001", "None")])
def test_the_documents_programs(python, digits, tmp_path, name, weights):
    (tmp_path / "models").mkdir()
    for path in ("models/dream-7b", "dream-7b"):
        (tmp_path / path).symlink_to(digits)
    (tmp_path / "config.yaml").write_text("deployment_profile: edge\n")
    out = python(f"import numpy as np\nWEIGHTS = {weights}\n" + SEEDS[name], cwd=tmp_path)
    ratio = float(re.search(r"Compression ratio: ([\d.]+)x", out).group(1))
    assert 3.2 < ratio < 3.5
    assert "Cosine similarity: 0.960" in out and "Model size: 0.8 MB" in out
    if name == "000":
        first, second, third, fourth, fifth = out.splitlines()[:5]
        assert all(repr(key) in first for key in RESULT) and first.endswith(" 2")
        assert all(repr(key) in second for key in (
            "cosine_similarity", "compression_ratio", "model_size_mb", "per_layer_accuracy", "passed"))
        assert second.endswith(" True")
        assert (third, fourth, fifth) == ("(256,) 4", "text 128", "256")
        assert (tmp_path / "models/dream-7b-int2/transformer").is_dir()
    else:
        told = [float(text) for text in re.findall(r"Progress: ([\d.]+)% - .", out)]
        assert len(told) > 2 and told == sorted(told) and told[-1] == 100.0
    assert (tmp_path / "dream-7b-int2/transformer").is_dir()


def test_stdout_is_silent(module, digits, tmp_path, capfd):
    module.quantize_diffusion_model(digits, tmp_path / "out")
    assert capfd.readouterr() == ("", "")


def test_the_tool(python, aq, package, digits, tmp_path):
    """python -m arrowquant is the tool: same words, same bytes, same status."""
    import subprocess
    def module_tool(*words):
        return subprocess.run([sys.executable, "-m", "arrowquant", *map(str, words)],
                              capture_output=True, text=True, cwd=tmp_path,
                              env={"PYTHONPATH": str(package), "PATH": "/usr/bin:/bin"}, timeout=120)
    def tool(*words):
        return subprocess.run([str(aq), *map(str, words)], capture_output=True, text=True,
                              cwd=tmp_path, timeout=120)
    for words in (["--version"], ["config", "--profile", "edge"], ["inspect", digits],
                  ["quantize", "nowhere", "x"], ["frobnicate"], [],
                  ["validate", digits, digits]):
        a, b = module_tool(*words), tool(*words)
        assert (a.returncode, a.stdout, a.stderr) == (b.returncode, b.stdout, b.stderr), words
    assert module_tool("quantize", digits, "p", "--quiet").returncode == 0
    assert tool("quantize", digits, "t", "--quiet").returncode == 0
    assert files_of(tmp_path / "p") == files_of(tmp_path / "t")


def test_trellis_tensors(module):
    """Arrays in a trellis code: the codes of a model file, at each width; few rows have steps."""
    weights = {"w": gaussian(1, 300, 256), "few": gaussian(2, 8, 64)}
    quantizer = module.ArrowQuantV2()
    for bits, least in ((2, 10.8), (3, 16), (4, 21.5)):
        config = module.DiffusionQuantConfig(method="trellis", bit_width=bits, trellis_states=256)
        made = quantizer.quantize(weights, config=config)
        tensor = made["w"]
        assert (tensor.code, tensor.method, tensor.bit_width) == ("trellis", "trellis", bits)
        error = np.sum((np.asarray(tensor).astype("f8") - weights["w"]) ** 2)
        sqnr = 10 * np.log10(np.sum(weights["w"].astype("f8") ** 2) / error)
        assert sqnr > least and tensor.sqnr_db == pytest.approx(sqnr, abs=1e-3)
        assert (made["few"].code, made["few"].bit_width) == ("affine", bits if bits != 3 else 4)
        twin = pickle.loads(pickle.dumps(tensor))
        np.testing.assert_array_equal(np.asarray(twin), np.asarray(tensor))
        record = quantizer.quantize_batch(weights, config=config)["w"]
        assert record["tensor"].codes == tensor.codes and record["scales"].numpy().size == tensor.scales.numpy().size
    with pytest.raises(module.ConfigurationError, match="8"):
        quantizer.quantize(weights, 8, config=config)


def test_trellis_and_model_file_agree(module, tmp_path):
    config = module.DiffusionQuantConfig(method="trellis", bit_width=2, trellis_states=256)
    weights = gaussian(1, 64, 512)
    module.quantize_diffusion_model(plain_folder(tmp_path / "m", {"layers.0.w.weight": ("F32", weights)}),
                                    tmp_path / "q", config)
    with module.load_model(tmp_path / "q") as model:
        stored = model["layers.0.w.weight"]
        tensor = module.ArrowQuantV2().quantize({"w": weights}, config=config)["w"]
        assert stored.code == "trellis" and stored.codes == tensor.codes and stored.params == tensor.params


def test_a_table_takes_no_trellis(module):
    config = module.DiffusionQuantConfig(method="trellis", bit_width=2, trellis_states=256)
    tensor = module.ArrowQuantV2().quantize({"w": gaussian(1, 64, 256)}, config=config)["w"]
    from arrowquant._arrow import LayerTable
    with pytest.raises(ValueError, match="w: .*trellis"):
        LayerTable(["w"], [tensor], {}).__arrow_c_array__()
    for name in ("quantize_arrow", "quantize_arrow_batch"):
        with pytest.raises(module.ConfigurationError, match="quantize_batch"):
            getattr(module.ArrowQuantV2(), name)(None, config=config)
