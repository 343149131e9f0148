"""R2Q, two residual steps of one bit with alternating least squares, against one in NumPy and float64;
its figures on Gaussian weights; odd groups; through the tool and back."""
import json
import subprocess

import numpy as np
import pytest

import aq_reader
import dit
from test_methods import BOTH, FILE, originals, reasons, run


@pytest.fixture
def quantize(tool, tmp_path):
    """Codes as signs [rows, cols, 2], parameters (a, b) [rows, groups, 2], decoded, figures."""
    def call(weights, group, params="F32", column_weights=None, expect=0):
        rows, cols = weights.shape
        (tmp_path / "weights").write_bytes(weights.astype("=f4").tobytes())
        name = "-"
        if column_weights is not None:
            name = tmp_path / "columns"
            name.write_bytes(column_weights.astype("=f4").tobytes())
        done = subprocess.run([tool("quant"), "residual", params, "2", str(group), str(rows), str(cols),
                               "F32", tmp_path / "weights", name, tmp_path / "out"],
                              capture_output=True, text=True, timeout=60)
        assert done.returncode == expect, done.stdout
        if expect:
            return done.stdout
        raw = (tmp_path / "out").read_bytes()
        words, groups = -(-cols // 16), -(-cols // group)
        at = rows * words * 4
        codes = aq_reader.unpack(np.frombuffer(raw[:at], "<u4").reshape(rows, words), cols, 2)
        size = rows * groups * 2 * (2 if params == "F16" else 4)
        grid = np.frombuffer(raw[at:at + size], "<f2" if params == "F16" else "<f4")
        at += size
        decoded = np.frombuffer(raw[at:at + rows * cols * 4], "<f4").reshape(rows, cols)
        figures = np.frombuffer(raw[-40:], "=f8")
        signs = 2.0 * (codes[..., None] >> np.array([1, 0], np.uint32) & 1) - 1
        return signs, grid.reshape(rows, groups, 2).astype(np.float64), decoded, figures
    return call


def r2q(w, c, rounds=12):
    """One group: greedy, then least squares and nearest codes in turn."""
    a = np.sum(c * np.abs(w)) / np.sum(c)
    left = w - np.where(w < 0, -a, a)
    b = np.sum(c * np.abs(left)) / np.sum(c)
    for _ in range(rounds):
        signs = np.stack([np.where(w < 0, -1, 1), np.where(w < np.where(w < 0, -a, a), -1, 1)], 1)
        gram = (signs * c[:, None]).T @ signs
        if np.linalg.det(gram) <= 1e-9 * np.sum(c) ** 2:
            return np.abs(signs[:, 0] @ (c * w)) / np.sum(c), 0.0
        a, b = sorted(np.abs(np.linalg.solve(gram, (signs * c[:, None]).T @ w)))[::-1]
    return a, b


@pytest.mark.parametrize("group, weighted", [(32, False), (64, True), (256, False), (128, True)])
def test_parameters_are_those_of_float64(quantize, group, weighted):
    rng = np.random.default_rng(group)
    w = rng.standard_normal((12, 300)).astype(np.float32)
    c = (rng.random(300) ** 2 * 10).astype(np.float32) if weighted else None
    signs, grid, decoded, _ = quantize(w, group, column_weights=c)
    weights = np.ones(300) if c is None else c.astype(np.float64)
    for row in range(len(w)):
        for g in range(grid.shape[1]):
            part = slice(g * group, min(300, (g + 1) * group))
            expected = r2q(w[row, part].astype(np.float64), weights[part])
            assert grid[row, g] == pytest.approx(expected, rel=1e-5)
    spread = np.repeat(grid, group, 1)[:, :300].astype(np.float32)
    assert np.array_equal(decoded, (spread * signs.astype(np.float32)).sum(-1, dtype=np.float32))
    levels = spread[..., None, :] * np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]])
    nearest = np.abs(w[..., None] - levels.sum(-1)).min(-1)
    assert np.abs(np.abs(w - decoded) - nearest).max() < 1e-6


@pytest.mark.parametrize("group, promised", [(32, .104), (64, .110), (128, .114), (256, .116)])
def test_figures_on_gaussian_weights(quantize, group, promised):
    w = np.random.default_rng(1).standard_normal((256, 1024)).astype(np.float32)
    *_, decoded, figures = quantize(w, group, "F16")
    error = float(np.sum((w - decoded).astype(np.float64) ** 2) / np.sum(w.astype(np.float64) ** 2))
    assert error == pytest.approx(promised, abs=0.001)
    assert figures[3] / figures[1] == pytest.approx(error, rel=1e-5)


def test_odd_groups(quantize):
    """Constants, zeros, two values, four levels, one value, weights that do not count: exact where
    four levels of that kind suffice."""
    rows = [np.full(70, 0.75), np.full(70, -0.5), np.zeros(70), np.where(np.arange(70) % 3, 2.0, -2.0),
            np.where(np.arange(70) % 2, 3.0, 1.0), np.arange(70) % 4 - 1.5]
    w = np.array(rows, np.float32)
    for params in ("F16", "F32"):
        assert np.abs(quantize(w, 32, params)[2] - w).max() < 1e-6
    assert np.isfinite(quantize(w, 32, column_weights=np.zeros(70, np.float32))[2]).all()
    assert quantize(np.array([[0.3]], np.float32), 32)[2] == np.float32(0.3)
    assert quantize(w[:, :5] * np.float32(1e-42), 32)[2].max() > 0
    assert "AQ_PARAM_F32" in quantize(w * np.float32(1e-6), 32, "F16", expect=1)
    w[1, 2] = np.nan
    assert "[1, 2] is NaN" in quantize(w, 32, expect=1)


def test_through_the_tool(aq, tmp_path):
    """Stored under its own code, read by another reader, and by our own; weighted with statistics."""
    run(aq, tmp_path / "q", "--bits", 2, "--group-size", 64, "--method", "r2q",
        "--layer-bits", "*.to_q.weight=4")
    assert reasons(tmp_path / "q") == {("r2q", "asked for"): 24, ("ptq", "R2Q has 2 bits"): 4}
    native = json.loads(aq_reader.read_container(tmp_path / "q" / FILE)[1]["arrowquant"])["tensors"]
    assert {entry["code"] for name, entry in native.items() if "to_q" not in name} == {"residual"}
    subprocess.run([aq, "dequantize", tmp_path / "q", tmp_path / "plain", "--quiet"], check=True,
                   timeout=100)
    back = dit.load(tmp_path / "plain" / FILE)
    quantized, _ = aq_reader.read(tmp_path / "q" / FILE)
    for name, value in quantized.items():
        assert np.array_equal(back[name], value), name
    run(aq, tmp_path / "w", "--bits", 2, "--group-size", 64, "--method", "r2q", *BOTH)
    weighted, _ = aq_reader.read(tmp_path / "w" / FILE)
    name = "transformer_blocks.1.ff.net.2.weight"
    c = dit.load(dit.REFERENCE / "activations.safetensors")[f"{name[:-7]}.act_sqmean"]
    c = c.astype(np.float64).mean(0)
    plain, better = (np.sum(c * (originals()[name] - q[name]) ** 2) for q in (quantized, weighted))
    assert better < 0.9 * plain


def test_what_it_is_not_for(aq, tmp_path):
    assert "r2q is for 2 bits" in run(aq, tmp_path / "no", "--bits", 4, "--method", "r2q", status=1)
