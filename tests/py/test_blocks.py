"""The block codes of GGUF: bytes as the gguf package and ggml's own library read them, and at least
ggml's quality for the same bytes."""
import json
import subprocess

import ggml
import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
peer = pytest.mark.skipif(ggml.folder() is None, reason="no wheel that bundles ggml is installed")

BLOCKS = {"Q8_0": (8, 32, 34), "Q4_0": (4, 32, 18), "Q4_1": (4, 32, 20), "Q4_K": (4, 256, 144),
          "Q2_K": (2, 256, 84)}


def sqnr(x, y):
    x = x.astype(np.float64)
    return 10 * np.log10((x ** 2).sum() / ((x - y) ** 2).sum())


@pytest.fixture
def quantize(tool, tmp_path):
    """quantize(name, x, importance=None, dtype="F32") -> blocks as bytes, decoded, figures"""
    program = tool("quant")

    def run(name, x, importance=None, dtype="F32", isa=None):
        rows, cols = x.shape
        bits, group, size = BLOCKS[name]
        weights, out, columns = tmp_path / "in", tmp_path / "out", "-"
        stored = x.astype(np.float32)
        if dtype == "BF16":
            stored = (stored.view(np.uint32) >> 16).astype(np.uint16)
        weights.write_bytes(stored.tobytes())
        if importance is not None:
            columns = tmp_path / "columns"
            columns.write_bytes(importance.astype(np.float32).tobytes())
        done = subprocess.run(
            [program, name, "F16", str(bits), str(group), str(rows), str(cols), dtype, weights,
             columns, out], capture_output=True, text=True, timeout=120,
            env={"ARROW_QUANT_ISA": isa} if isa else None)
        if done.stdout.strip() != "ok":
            return done.stdout.strip()
        data = np.frombuffer(out.read_bytes(), np.uint8)
        bytes_ = rows * cols // group * size
        blocks, rest = data[:bytes_], data[bytes_:]
        decoded = rest[:4 * rows * cols].view(np.float32).reshape(rows, cols)
        return blocks, decoded, rest[4 * rows * cols:].view(np.float64)
    return run


def weights_of(kind, rows=64, cols=512, seed=1):
    rng = np.random.default_rng(seed)
    if kind == "gaussian":
        return (rng.standard_normal((rows, cols)) * 0.02).astype(np.float32)
    if kind == "laplace":
        return (rng.laplace(size=(rows, cols)) * 0.02).astype(np.float32)
    if kind == "positive":
        return (rng.random((rows, cols)) + 3).astype(np.float32)
    if kind == "outliers":
        x = rng.standard_normal((rows, cols)) * 0.02
        x[rng.random(x.shape) < 0.002] *= 60
        return x.astype(np.float32)
    if kind == "constant":
        x = np.zeros((rows, cols), np.float32)
        x[1::4] = 0.37
        x[2::4] = -1.5
        x[3::4, ::7] = 1
        return x
    assert kind == "tiny"
    return (rng.standard_normal((rows, cols)) * 1e-6).astype(np.float32)


KINDS = ["gaussian", "laplace", "positive", "outliers", "constant", "tiny"]


@pytest.mark.parametrize("name", BLOCKS)
def test_gguf_reads_the_same_numbers(quantize, name):
    for kind in KINDS:
        x = weights_of(kind)
        blocks, decoded, figures = quantize(name, x)
        theirs = gguf.quants.dequantize(blocks.reshape(x.shape[0], -1),
                                        gguf.GGMLQuantizationType[name])
        assert np.array_equal(theirs.view(np.uint32), decoded.view(np.uint32)), kind
        wide = x.astype(np.float64)
        assert np.isclose(figures[3], ((wide - decoded) ** 2).sum(), rtol=1e-4, atol=1e-30), kind


@peer
@pytest.mark.parametrize("name", BLOCKS)
def test_ggml_reads_the_same_numbers(quantize, name):
    library = ggml.Ggml()
    for kind in KINDS:
        x = weights_of(kind)
        blocks, decoded, _ = quantize(name, x)
        theirs = library.dequantize(name, blocks, x.size).reshape(x.shape)
        assert np.array_equal(theirs.view(np.uint32), decoded.view(np.uint32)), kind


def digits_rows(digits):
    """The bundled model's matrices, end to end, as rows of 256."""
    data = (digits / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    rows = []
    for name, entry in header.items():
        if name != "__metadata__" and len(entry["shape"]) == 2:
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            wide = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
            rows.append(wide.view(np.float32))
    flat = np.concatenate(rows)
    return flat[:flat.size // 256 * 256].reshape(-1, 256)


@peer
@pytest.mark.parametrize("name", ["Q4_K", "Q2_K"])
def test_no_worse_than_ggml(quantize, digits, name):
    """Not than its plain search, nor than the one with an importance of one for each column."""
    library = ggml.Ggml()
    for kind in ["gaussian", "laplace", "digits"]:
        x = digits_rows(digits)[:1024] if kind == "digits" else weights_of(kind, 128, 512)
        ours = sqnr(x, quantize(name, x)[1])
        for importance in (None, np.ones(x.shape[1])):
            blocks = library.quantize(name, x, importance)
            theirs = sqnr(x, library.dequantize(name, blocks, x.size).reshape(x.shape))
            assert ours >= theirs, (kind, importance is not None)


@peer
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1"])
def test_small_blocks_beat_plain_rounding(quantize, name):
    library = ggml.Ggml()
    for kind in ["gaussian", "laplace"]:
        x = weights_of(kind)
        theirs = library.dequantize(name, library.quantize(name, x), x.size).reshape(x.shape)
        assert sqnr(x, quantize(name, x)[1]) >= sqnr(x, theirs), kind


@pytest.mark.parametrize("name", BLOCKS)
def test_importance_lowers_the_weighted_error(quantize, name):
    x = weights_of("gaussian")
    importance = np.random.default_rng(3).lognormal(sigma=1.5, size=x.shape[1])
    error = [((x.astype(np.float64) - decoded) ** 2 * importance).sum()
             for decoded in (quantize(name, x)[1], quantize(name, x, importance)[1])]
    assert error[1] < error[0] * (1 if name == "Q8_0" else 0.97)
    scaled = quantize(name, x, importance * 2.0 ** 40)[0]
    assert np.array_equal(scaled, quantize(name, x, importance)[0])
    none = quantize(name, x, importance * 0)
    assert np.array_equal(none[0], quantize(name, x)[0])


@pytest.mark.parametrize("name", BLOCKS)
def test_same_bytes_on_every_isa(quantize, name):
    for kind in KINDS:
        x = weights_of(kind, rows=16)
        importance = np.random.default_rng(5).random(x.shape[1]).astype(np.float32)
        for weights in (None, importance):
            ours = [quantize(name, x, weights, isa=isa) for isa in (None, "scalar", "avx2")]
            for other in ours[1:]:
                if isinstance(other, str):
                    continue  # this machine lacks the ISA
                assert np.array_equal(ours[0][0], other[0]), kind


@pytest.mark.parametrize("name", BLOCKS)
def test_stored_dtype_makes_no_difference(quantize, name):
    x = weights_of("gaussian")
    x = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.array_equal(quantize(name, x)[0], quantize(name, x, dtype="BF16")[0])


@pytest.mark.parametrize("name", BLOCKS)
def test_zeros_stay_zeros(quantize, name):
    x = np.zeros((3, 512), np.float32)
    _, decoded, figures = quantize(name, x)
    assert not decoded.any() and figures[3] == 0


@pytest.mark.parametrize("name", BLOCKS)
def test_refusals(quantize, name):
    bits, group, _ = BLOCKS[name]
    assert f"no multiple of {group}" in quantize(name, np.ones((2, group + 16), np.float32))
    for bad in (np.nan, np.inf):
        x = np.ones((4, 256), np.float32)
        x[2, 7] = bad
        assert "[2, 7]" in quantize(name, x)
    x = np.ones((4, 512), np.float32)
    x[3, 300] = 1e30
    told = quantize(name, x)
    assert "beyond F16" in told and "[3, " in told
    del bits
