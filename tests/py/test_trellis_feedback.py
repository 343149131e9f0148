"""GPTQ's feedback with a trellis as the rounding step, against an implementation in NumPy and float64, written
from docs/FORMAT.md and the papers: the same quality of the output, no better and no worse."""
import json
import subprocess

import numpy as np
import pytest
from safetensors.numpy import save_file

import aq_reader

BITS, STATES = 2, 256


def ring(targets, scales, values, start=None):
    """The cheapest way through the rows; `start`: the low bits that the ring's seam must have. Rows are taken
    last first, as each state is one of the next row's with new low bits."""
    states = len(values)
    ends = states >> BITS
    least = np.zeros(ends) if start is None else np.where(np.arange(ends) == start, 0.0, np.inf)
    choices = []
    for target, scale in zip(targets[::-1], scales[::-1]):
        cost = least[np.arange(states) >> BITS] + (target - scale * values) ** 2
        cost = cost.reshape(1 << BITS, ends)  # by the state's top bits
        choices.append(cost.argmin(0))
        least = cost.min(0)
    end = int(least.argmin()) if start is None else start
    found = np.empty(len(targets), int)
    for row, choice in enumerate(choices[::-1]):
        state = end | int(choice[end]) << (ends.bit_length() - 1)
        found[row] = state
        end = state >> BITS
    return found, end


def nearest_ring(targets, scales, values):
    """Tail-biting in two passes: the first, begun half way round, shows the seam."""
    half = len(targets) // 2
    turned, _ = ring(np.roll(targets, -half), np.roll(scales, -half), values)
    states, end = ring(targets, scales, values,
                       int(turned[len(targets) - half]) & ((len(values) >> BITS) - 1))
    return scales * values[states]


def feedback(w, h, values):
    """The columns by descending diagonal, each from what those before it left."""
    d = np.diag(h)
    order = np.argsort(-d, kind="stable")
    damped = h[np.ix_(order, order)] + 0.01 * d.mean() * np.eye(len(d))
    r = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
    r = r / np.diag(r)
    scale = np.sqrt((w**2 * d).sum(1) / d.sum()) / np.std(values)
    for _ in range(2):
        x, q = w[:, order], np.empty_like(w)
        for j in range(len(d)):
            target = x[:, j] - (q[:, :j] - x[:, :j]) @ r[:j, j]
            q[:, j] = nearest_ring(target, scale, values)
        q = q[:, np.argsort(order)]
        grown = np.einsum("ij,jk,ik->i", q, h, w) / np.einsum("ij,jk,ik->i", q, h, q)
        q, scale = q * grown[:, None], scale * grown
    return q


def output_error(w, q, h):
    return np.sum((q - w) @ h * (q - w)) / np.sum(w @ h * w)


@pytest.fixture(scope="module")
def layer(aq, tmp_path_factory):
    """A layer with outliers among its inputs, and what became of it."""
    top = tmp_path_factory.mktemp("feedback")
    rng = np.random.default_rng(2)
    w = rng.standard_normal((128, 48)).astype(np.float32)
    x = rng.standard_normal((400, 48))
    x = np.cumsum(x, 1) / np.sqrt(np.arange(1, 49))
    x[:, ::13] *= 6
    h = (x.T @ x / len(x)).astype(np.float32)
    save_file({"layer.weight": w}, top / "m.safetensors")
    save_file({"layer": h}, top / "h.safetensors")
    for name, words in (("free", []), ("fed", ["--calibration", top / "h.safetensors"])):
        subprocess.run([aq, "quantize", top / "m.safetensors", top / name, "--quiet", "--bits", str(BITS), "--method",
                        "trellis", "--trellis-states", str(STATES), "--min-accuracy", "0", *words],
                       check=True, timeout=100)
    return top, w.astype(np.float64), h.astype(np.float64)


def stored(path):
    path = path if path.is_file() else next(path.glob("*.safetensors"))
    entry = json.loads(aq_reader.read_container(path)[1]["arrowquant"])["tensors"]["layer.weight"]
    return entry, aq_reader.read(path)[0]["layer.weight"].astype(np.float64)


def test_it_is_as_good_as_float64(layer):
    top, w, h = layer
    entry, fed = stored(top / "fed")
    turn = aq_reader.rotation(entry["rotation"], w.shape[1]) if entry.get("rotation") else np.eye(w.shape[1])
    values = aq_reader.trellis_table(BITS, STATES).astype(np.float64)
    expected = feedback(w @ turn.T, turn @ h @ turn.T, values) @ turn
    assert output_error(w, fed, h) == pytest.approx(output_error(w, expected, h), rel=0.1)
    _, free = stored(top / "free")
    assert output_error(w, fed, h) < 0.5 * output_error(w, free, h)
