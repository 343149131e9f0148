"""The C sampler (examples/sample_dit.c, dit.h) against the reference run and against the NumPy
forward of the same quantized weights."""
import json
import shutil
import struct
import subprocess
import zlib

import numpy as np
import pytest

import aq_reader
import dit
from conftest import MADE, REPO, WARNINGS, call, held, link_example, stale

VECTORS = dit.REFERENCE / "vectors.safetensors"
EQUALIZED = ["--set", "enable_spatial=true", "--calibration", str(dit.REFERENCE / "activations.safetensors")]
EXAMPLE = REPO / "examples/sample_dit.c"


@pytest.fixture(scope="session")
def sampler():
    target = MADE / "sample_dit"
    with held("sample_dit"):
        if stale(target, [EXAMPLE, *(REPO / "examples").glob("*.h"), REPO / "arrowquant.h"]):
            target.parent.mkdir(parents=True, exist_ok=True)
            link_example("sample_dit.c", target, "-std=c99", "-O2", *WARNINGS)
    return target


@pytest.fixture(scope="session")
def reference():
    return dit.load(VECTORS)


def sample(sampler, model, tmp_path, *words):
    out = tmp_path / "samples.f32"
    call([sampler, model, "--samples", out, "--out", tmp_path / "sheet.png", *words])
    return np.fromfile(out, "<f4").reshape(-1, 1, 8, 8)


def quantized(aq, tmp_path, *words):
    out = tmp_path / "quantized"
    call([aq, "quantize", dit.DIGITS, out, "--quiet", "--quantize-sensitive", "--keep",
          "*embedding_table*", "--keep", "pos_embed*", "--min-accuracy", "0", *words])
    return out


def psnr(a, b):
    return 10 * np.log10(4 / np.mean((a.astype(np.float64) - b) ** 2))


def numpy_model(folder):
    """The NumPy forward with the weights of a quantized folder."""
    model = dit.Model(dtype=np.float64)
    found, _ = aq_reader.read(folder / "transformer/diffusion_pytorch_model.safetensors")
    for name in model.layers():
        model.weights[name] = found[name + ".weight"].astype(np.float64)
    return model


def dynamic_int8(layer, x):
    """What the INT8 products see: 127 steps on either side of zero for each row, or 255 steps over
    the range of a row that lies on one side but for a quarter of it."""
    if layer == "pos_embed.proj":
        return x
    low, high = np.minimum(x.min(1, keepdims=True), 0), np.maximum(x.max(1, keepdims=True), 0)
    largest = np.maximum(-low, high)
    one_sided = 4 * np.minimum(-low, high) <= largest
    scale = np.where(one_sided, (high - low) / 255, largest / 127)
    zero = np.where(one_sided, np.rint(-128 - low / scale), 0)
    return (np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale


def dynamic_of(folder):
    """dynamic_int8, which sees the inputs of equalized layers scaled."""
    tensors, _ = aq_reader.read_container(folder / "transformer/diffusion_pytorch_model.safetensors")

    def hook(layer, x):
        _, scales = tensors.get(layer + ".weight.aq_input_scales", (None, np.float64(1)))
        scales = scales.astype(np.float64)
        return dynamic_int8(layer, x * scales) / scales

    return hook


def test_forward_of_the_plain_model(tool, reference, tmp_path):
    out = tmp_path / "eps"
    call([tool("dit"), dit.DIGITS, VECTORS, "float", out])
    eps = np.fromfile(out, "<f4").reshape(-1, 1, 8, 8)
    assert np.abs(eps - reference["forward.eps"]).max() <= 1e-5


@pytest.mark.parametrize("bits, words", [
    (8, ["--group-size", "64"]), (4, ["--group-size", "128"]),
    (2, ["--group-size", "64", "--parameter-bits", "8"]), (4, ["--group-size", "32", "--symmetric"]),
    (8, ["--group-size", "64", *EQUALIZED])])
def test_forward_of_quantized_models(tool, aq, reference, tmp_path, bits, words):
    folder = quantized(aq, tmp_path, "--bits", str(bits), *words)
    model = numpy_model(folder)
    arguments = [reference[f"forward.{name}"] for name in ("x", "timestep", "class")]
    expected = {}
    for kind, hook in (("float", None), ("dynamic", dynamic_of(folder))):
        out = tmp_path / kind
        call([tool("dit"), folder, VECTORS, kind, out])
        eps = np.fromfile(out, "<f4").reshape(-1, 1, 8, 8)
        model.hook = hook
        expected[kind] = model.forward(*arguments)
        error = np.sqrt(np.mean((eps - expected[kind]) ** 2))
        if kind == "float":
            assert np.abs(eps - expected[kind]).max() <= 1e-5
        else:  # a rounding that falls otherwise is a whole step of INT8, and seldom
            assert error <= 0.5 * np.sqrt(np.mean((expected["float"] - expected["dynamic"]) ** 2))


def test_samples_of_the_plain_model(sampler, reference, tmp_path):
    samples = sample(sampler, dit.DIGITS, tmp_path, "--noise", VECTORS, "ddim.noise",
                     "--images", "20")
    assert len(samples) == 20
    assert psnr(samples, reference["ddim.samples"][:20]) >= 100  # 60 is asked for


def test_static_activations(sampler, aq, reference, tmp_path):
    """INT8 by groups of timesteps: near the plain samples, nearer with ten groups than with one."""
    folder = quantized(aq, tmp_path, "--bits", "8", "--group-size", "64")
    found = {}
    for name, words in {"one": ["--time-groups", "1"], "uniform": ["--cut", "uniform"],
                        "optimal": []}.items():
        samples = sample(sampler, folder, tmp_path, "--noise", VECTORS, "ddim.noise", "--images",
                         "30", "--activations", "static", "--calibration",
                         dit.REFERENCE / "activations.safetensors", *words)
        found[name] = psnr(samples, reference["ddim.samples"][:30])
    assert found["one"] > 45 and found["uniform"] > 48 and found["optimal"] > 48, found
    assert "--calibration" in refused(sampler, folder, "--activations", "static")
    assert "--cut" in refused(sampler, folder, "--activations", "static", "--cut", "odd")


def test_samples_do_not_depend_on_batches_threads_or_isa(sampler, aq, tmp_path):
    folder = quantized(aq, tmp_path, "--bits", "4")
    words = ["--images", "5", "--steps", "4", "--activations", "dynamic"]
    first = sample(sampler, folder, tmp_path, *words)
    for more in (["--batch", "2"], ["--threads", "1"], ["--batch", "1", "--threads", "3"], ["--repack"],
                 ["--repack", "--batch", "1"]):
        assert sample(sampler, folder, tmp_path, *words, *more).tobytes() == first.tobytes()
    out = tmp_path / "scalar.f32"
    done = subprocess.run([sampler, folder, "--samples", out, "--out", tmp_path / "x.png", *words],
                          env={"ARROW_QUANT_ISA": "scalar"}, capture_output=True, timeout=280)
    assert done.returncode == 0 and out.read_bytes() == first.tobytes()


def test_trellis_layers_run_as_they_dequantize(sampler, aq, tmp_path):
    """Rotated inputs by rotated weights are the plain product, to rounding; INT8 comes near it."""
    folder, plain = quantized(aq, tmp_path, "--bits", "4", "--method", "trellis", "--trellis-states",
                              "256"), tmp_path / "plain"
    call([aq, "dequantize", folder, plain, "--quiet"])
    words = ["--images", "5", "--steps", "4"]
    expected = sample(sampler, plain, tmp_path, *words)
    assert psnr(sample(sampler, folder, tmp_path, *words), expected) >= 90
    assert psnr(sample(sampler, folder, tmp_path, *words, "--activations", "dynamic"), expected) >= 30
    assert "dynamic" in refused(sampler, folder, "--activations", "static", "--calibration",
                                dit.REFERENCE / "activations.safetensors")


def test_seed_classes_guidance(sampler, tmp_path):
    words = ["--images", "4", "--steps", "3"]
    plain = sample(sampler, dit.DIGITS, tmp_path, *words)
    assert np.array_equal(plain, sample(sampler, dit.DIGITS, tmp_path, *words, "--seed", "1"))
    assert not np.array_equal(plain, sample(sampler, dit.DIGITS, tmp_path, *words, "--seed", "2"))
    same = sample(sampler, dit.DIGITS, tmp_path, *words, "--classes", "0,1,2,3")
    assert np.array_equal(plain, same)
    none = sample(sampler, dit.DIGITS, tmp_path, *words, "--classes", "-1")
    assert not np.array_equal(plain, none)
    # guidance 0 is "no class" for everybody
    zero = sample(sampler, dit.DIGITS, tmp_path, *words, "--guidance", "0")
    assert np.abs(zero - none).max() < 1e-5
    strong = sample(sampler, dit.DIGITS, tmp_path, *words, "--guidance", "4")
    assert np.abs(strong - plain).max() > 1e-2


def read_png(path):
    data, at, parts, head = path.read_bytes(), 8, b"", None
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at:at + 8])
        body = data[at + 8:at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size:at + 12 + size])[0] == zlib.crc32(kind + body)
        head = struct.unpack(">IIBBBBB", body) if kind == b"IHDR" else head
        parts += body if kind == b"IDAT" else b""
        at += 12 + size
    assert kind == b"IEND"
    lines = np.frombuffer(zlib.decompress(parts), np.uint8).reshape(head[1], -1)
    assert not lines[:, 0].any()
    return head, lines[:, 1:]


def test_sheet(sampler, tmp_path):
    words = ["--images", "7", "--steps", "2", "--columns", "3"]
    x = sample(sampler, dit.DIGITS, tmp_path, *words, "--zoom", "2")
    head, pixels = read_png(tmp_path / "sheet.png")
    assert head == (48, 48, 8, 0, 0, 0, 0)
    expected = np.zeros((24, 24), np.uint8)
    for i, image in enumerate(x[:, 0]):
        y, column = divmod(i, 3)
        expected[8 * y:8 * y + 8, 8 * column:8 * column + 8] = np.clip((image + 1) * 127.5, 0, 255)
    assert np.abs(pixels[::2, ::2].astype(int) - expected).max() <= 1
    assert np.array_equal(pixels[::2, ::2], pixels[1::2, 1::2])
    call([sampler, dit.DIGITS, *words, "--zoom", "1", "--out", tmp_path / "sheet.pgm"])
    data = (tmp_path / "sheet.pgm").read_bytes()
    assert data.startswith(b"P5\n24 24\n255\n") and data[13:] == pixels[::2, ::2].tobytes()


def refused(sampler, *words):
    done = subprocess.run([str(word) for word in (sampler, *words)], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode in (1, 2)
    return done.stderr


def test_refusals(sampler, tmp_path):
    assert "usage:" in refused(sampler)
    assert "--steps" in refused(sampler, dit.DIGITS, "--steps", "0")
    assert "unknown option" in refused(sampler, dit.DIGITS, "--stepz", "1")
    assert "--activations" in refused(sampler, dit.DIGITS, "--activations", "int9")
    assert "--classes" in refused(sampler, dit.DIGITS, "--classes", "10", "--out", tmp_path / "x.png")
    assert "cannot be read" in refused(sampler, tmp_path)
    assert "no such tensor" in refused(sampler, dit.DIGITS, "--noise", VECTORS, "ddim.nose")
    assert "shape" in refused(sampler, dit.DIGITS, "--noise", VECTORS, "ddim.class")
    copy = tmp_path / "copy"
    shutil.copytree(dit.DIGITS, copy)
    config = copy / "transformer/config.json"
    good = json.loads(config.read_text())
    for change, words in (({"num_layers": 5}, "transformer_blocks.4"),
                          ({"num_attention_heads": 8}, "config.json calls for"),
                          ({"activation_fn": "geglu"}, "gelu-approximate"),
                          ({"patch_size": 3}, "out of range"),
                          ({"_class_name": "UNet2DModel"}, "DiTTransformer2DModel")):
        config.write_text(json.dumps({**good, **change}))
        assert words in refused(sampler, copy), change
    config.write_text("{")
    assert "config.json" in refused(sampler, copy)
