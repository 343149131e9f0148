"""GPTQ against an independent one in NumPy and float64, written from the paper (arXiv 2210.17323):
the inverse of the damped Hessian, its Cholesky factor, columns in the order of descending diagonals.
Given the same parameters, the codes are the same but for near ties; the output error agrees. What is
solved again afterwards is compared with a float64 version of that, from the same start."""
import subprocess

import numpy as np
import pytest

from test_quant_reference import Quantized


class Run:
    """Calls tests/c/tool_quant.c; a Hessian takes the place of column weights."""

    def __init__(self, tool, folder):
        self.program, self.folder = tool("quant"), folder

    def __call__(self, word, hessian, code, params, bits, group, rows, cols, dtype, weights):
        (self.folder / "weights").write_bytes(weights.astype("=f4").tobytes())
        (self.folder / "hessian").write_bytes(hessian.astype("=f4").tobytes())
        done = subprocess.run(
            [self.program, code, params, str(bits), str(group), str(rows), str(cols), dtype,
             self.folder / "weights", f"{word}:{self.folder / 'hessian'}", self.folder / "out"],
            capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (0, "ok\n"), done.stdout
        return (self.folder / "out").read_bytes()


@pytest.fixture
def run(tool, tmp_path):
    return Run(tool, tmp_path)


def quantized(run, weights, hessian, word="GPTQ", **spec):
    """A Quantized with output_signal, output_error and damping besides."""
    kept = {}

    def call(code, params, bits, group, rows, cols, dtype, values, column_weights):
        raw = run(word, hessian, code, params, bits, group, rows, cols, dtype, values)
        kept["more"] = np.frombuffer(raw[-24:], "=f8")
        return raw[:-24]

    made = Quantized(call, weights, **spec)
    made.signal, made.error, made.damping = kept["more"]
    return made


def inputs(cols, samples, seed):
    """Correlated activations: a few directions carry most, some channels are large."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, cols // 4 + 1)) @ rng.standard_normal((cols // 4 + 1, cols))
    x = 0.3 * x / np.sqrt(cols // 4 + 1) + 0.1 * rng.standard_normal((samples, cols))
    return x * np.where(np.arange(cols) % 17 == 0, 6.0, 1.0)


def second_moments(x):
    return (x.T @ x / len(x)).astype(np.float32)


def gptq(weights, hessian, scale, low, levels, damping):
    """The paper's algorithm 1 with its blocks left out, which change nothing but the speed; group
    parameters are given, spread over the columns."""
    h = hessian.astype(np.float64)
    h = h + damping * np.mean(np.diag(h)) * np.eye(len(h))
    order = np.argsort(-np.diag(hessian), kind="stable")
    inverse = np.linalg.inv(h[np.ix_(order, order)])
    upper = np.linalg.cholesky(inverse).T
    w = weights.astype(np.float64)[:, order]
    codes = np.zeros(w.shape)
    for j, column in enumerate(order):
        target = w[:, j]
        code = np.clip(np.rint((target - low[:, column]) / scale[:, column]), levels[0], levels[1])
        codes[:, column] = code
        change = (target - (scale[:, column] * code + low[:, column])) / upper[j, j]
        w[:, j + 1:] -= np.outer(change, upper[j, j + 1:])
    return codes


def output_error(difference, hessian):
    return float(np.sum(difference @ hessian.astype(np.float64) * difference))


CASES = [("affine", "F16", 4, 128, (96, 384)), ("affine", "F16", 2, 64, (128, 256)),
         ("affine", "F32", 8, 32, (40, 130)), ("symmetric", "F16", 4, 64, (64, 200)),
         ("symmetric", "F32", 2, 32, (33, 96)), ("affine", "Q8", 2, 32, (50, 160)),
         ("symmetric", "Q8", 8, 256, (17, 300)), ("affine", "F16", 4, 256, (1, 512)),
         ("affine", "F32", 4, 32, (64, 1))]


def layer(code, params, shape):
    """Weights, and a Hessian of correlated inputs."""
    rng = np.random.default_rng(sum(shape))
    weights = (0.04 * rng.standard_normal(shape)).astype(np.float32)
    if code == "symmetric" and params != "F32":
        weights *= 64  # so that scales fit F16
    return weights, second_moments(inputs(shape[1], 3 * shape[1], shape[0]))


def zero_of(code, bits):
    """The stored code that stands for 0, or min."""
    return 2 ** (bits - 1) if code == "symmetric" else 0


@pytest.mark.parametrize("code, params, bits, group, shape", CASES)
def test_codes_are_those_of_the_paper(run, code, params, bits, group, shape):
    """With the fast fit nothing is solved again."""
    weights, hessian = layer(code, params, shape)
    found = quantized(run, weights, hessian, code=code, params=params, bits=bits, group=group,
                      fit="-fast")
    scale, low = found.grid()
    half = zero_of(code, bits)
    scale = found.spread(scale).astype(np.float64)
    low = found.spread(low).astype(np.float64) if low is not None else np.zeros(shape)
    expected = gptq(weights, hessian, scale, low, (-half, 2 ** bits - 1 - half), 0.01)
    codes = found.codes().astype(np.float64) - half
    assert np.abs(codes - expected).max() <= (3 if bits == 8 else 1)
    # A tie that falls the other way changes what is fed on: 8 bits have the finest codes.
    assert np.mean(codes != expected) <= (0.02 if bits == 8 else 0.005)
    theirs = scale * expected + low
    ours, reference = (output_error(weights - w, hessian) for w in (found.decoded, theirs))
    assert ours == pytest.approx(reference, rel=0.01)
    assert found.error == pytest.approx(ours, rel=1e-3, abs=1e-9 * found.signal)
    assert found.signal == pytest.approx(output_error(weights, hessian), rel=1e-4)
    assert found.damping == 0.01


# ------------------------------------------------------------------ parameters and codes solved again

def damped(hessian):
    wide = hessian.astype(np.float64)
    return wide + 0.01 * np.mean(np.diag(wide)) * np.eye(len(wide))


class Stored:
    """The parameters that a file of these can hold, nearest to those wanted."""

    def __init__(self, found):
        self.params, self.symmetric = found.params, found.code == "symmetric"
        if self.params == "Q8":
            pair = np.frombuffer(found.extra_bytes, "<f2").reshape(found.shape[0], found.values)
            self.rows = pair.astype(np.float64)

    def scale(self, wanted):
        if self.params != "Q8":
            return wanted.astype("f2" if self.params == "F16" else "f4").astype(np.float64)
        if self.symmetric:
            code = np.clip(np.rint(wanted * 128 / self.rows[:, 0]), -128, 127)
            return self.rows[:, 0] * np.where(code == 0, np.copysign(1, wanted), code) / 128
        return self.rows[:, 0] * np.clip(np.rint(wanted * 256 / self.rows[:, 0]), 1, 256) / 256

    def low(self, wanted):
        if self.params != "Q8":
            return wanted.astype("f2" if self.params == "F16" else "f4").astype(np.float64)
        return self.rows[:, 1] * np.clip(np.rint(wanted * 128 / self.rows[:, 1]), -128, 127) / 128


def solved(stored, h, pull, codes, scale, low, affine):
    """scale and min of one group of all rows for the least error, `pull` being e·H at its columns."""
    one = np.ones(codes.shape[1])
    a, b, c = np.sum(codes @ h * codes, 1), codes @ h @ one, one @ h @ one
    by_codes, by_ones = np.sum(pull * codes, 1), pull @ one
    if not affine:
        b, c, by_ones = 0 * b, 1.0, 0 * by_ones
    determinant = a * c - b * b
    usable = determinant > 1e-6 * a * c
    step = np.where(usable, (b * by_ones - c * by_codes) / np.where(usable, determinant, 1), 0)
    new = np.where(usable, stored.scale(scale + step), scale)
    ds = new - scale
    new_low = stored.low(low - (by_ones + b * ds) / c) if affine else low
    dm = new_low - low
    change = a * ds ** 2 + 2 * b * ds * dm + c * dm ** 2 + 2 * (ds * by_codes + dm * by_ones)
    better = (change < 0) & (new * scale > 0)
    return np.where(better, new, scale), np.where(better, new_low, low)


def refitted(weights, hessian, codes, scale, low, group, levels, stored, affine):
    """Group by group: parameters, each code with all others as they are, parameters."""
    h, w = damped(hessian), weights.astype(np.float64)
    codes, scale, low = codes.copy(), scale.astype(np.float64), low.astype(np.float64)
    decoded = np.repeat(scale, group, 1)[:, :w.shape[1]] * codes + np.repeat(low, group, 1)[:, :w.shape[1]]
    for g in range(scale.shape[1]):
        own = slice(g * group, min(w.shape[1], (g + 1) * group))
        block, c = h[own, own], codes[:, own]

        def pull():
            decoded[:, own] = scale[:, g:g + 1] * c + low[:, g:g + 1]
            return (decoded - w) @ h[:, own]
        scale[:, g], low[:, g] = solved(stored, block, pull(), c, scale[:, g], low[:, g], affine)
        eh = pull()
        for j in range(c.shape[1]):
            before = scale[:, g] * c[:, j] + low[:, g]
            target = before - eh[:, j] / block[j, j]
            c[:, j] = np.clip(np.rint((target - low[:, g]) / scale[:, g]), *levels)
            eh += np.outer(scale[:, g] * c[:, j] + low[:, g] - before, block[j])
        scale[:, g], low[:, g] = solved(stored, block, pull(), c, scale[:, g], low[:, g], affine)
        pull()
    return codes, scale, low, decoded


@pytest.mark.parametrize("code, params, bits, group, shape", CASES)
def test_what_is_solved_again(run, tool, tmp_path, code, params, bits, group, shape):
    """From the ordinary fit with H's diagonal as weights, and the paper's codes for it."""
    weights, hessian = layer(code, params, shape)
    spec = dict(code=code, params=params, bits=bits, group=group)
    (tmp_path / "diagonal").write_bytes(np.diag(hessian).astype("=f4").tobytes())

    def plain(code, params, bits, group, rows, cols, dtype, values, column_weights):
        (tmp_path / "weights").write_bytes(values.tobytes())
        subprocess.run([tool("quant"), code, params, str(bits), str(group), str(rows), str(cols), dtype,
                        tmp_path / "weights", tmp_path / "diagonal", tmp_path / "out"], check=True,
                       capture_output=True, timeout=60)
        return (tmp_path / "out").read_bytes()
    start, found = Quantized(plain, weights, **spec), quantized(run, weights, hessian, **spec)
    half = zero_of(code, bits)
    levels = (-half, 2 ** bits - 1 - half)
    scale, low = start.grid()
    low = low if low is not None else np.zeros_like(scale)
    codes = gptq(weights, hessian, start.spread(scale).astype(np.float64),
                 start.spread(low).astype(np.float64), levels, 0.01)
    before = start.spread(scale) * codes + start.spread(low)
    codes, scale, low, decoded = refitted(weights, hessian, codes, scale, low, group, levels,
                                          Stored(start), code == "affine")
    own_scale, own_low = found.grid()
    own_codes = found.codes().astype(np.float64) - half
    assert np.mean(own_codes != codes) <= (0.04 if bits == 8 else 0.01)
    assert np.mean(np.abs(own_scale / scale - 1) > 0.002) <= 0.02
    if own_low is not None:
        assert np.mean(np.abs(own_low - low) > 0.01 * np.abs(scale) * 2 ** bits) <= 0.02
    ours, reference, first = (output_error(weights - w, damped(hessian))
                              for w in (found.decoded, decoded, before))
    assert ours == pytest.approx(reference, rel=0.01)
    assert ours <= first * 1.0001
    # A column alone has a code that is nearest already; all others gain.
    assert shape[1] == 1 or ours < first * 0.98
    assert found.error == pytest.approx(output_error(weights - found.decoded, hessian), rel=1e-3,
                                        abs=1e-9 * found.signal)


@pytest.mark.parametrize("code, params, bits, group, shape", CASES[:5])
def test_last_parameters_are_the_best(run, code, params, bits, group, shape):
    """No neighbour of the last group's scale or min, as they can be stored, makes a row's error less."""
    weights, hessian = layer(code, params, shape)
    found = quantized(run, weights, hessian, code=code, params=params, bits=bits, group=group)
    h, own = damped(hessian), slice((found.groups - 1) * group, shape[1])
    kind = np.float16 if params == "F16" else np.float32
    scale, low = found.grid()
    codes = found.codes().astype(np.float64)[:, own] - zero_of(code, bits)
    low = np.zeros_like(scale) if low is None else low

    def error(last_scale, last_low):
        e = found.decoded.astype(np.float64) - weights
        e[:, own] = last_scale[:, None] * codes + last_low[:, None] - weights[:, own]
        return np.sum(e @ h * e, 1)
    last = scale[:, -1].astype(kind), low[:, -1].astype(kind)
    least = error(*(value.astype(np.float64) for value in last))
    steps = 1 if params == "F16" else 4096  # F32 kernels do not see the last bits
    for which in range(2 if code == "affine" else 1):
        for sign in (-1, 1):
            moved = [value.astype(np.float64) for value in last]
            moved[which] += sign * steps * np.spacing(np.abs(last[which])).astype(np.float64)
            assert np.mean(error(*moved) >= least * (1 - 1e-6)) >= 0.97


def test_measures_any_codes(run):
    """aq_measure_output on plain rounding, against float64."""
    rng = np.random.default_rng(1)
    weights = rng.standard_normal((70, 300)).astype(np.float32)
    hessian = second_moments(inputs(300, 500, 2))
    found = quantized(run, weights, hessian, word="MEASURE", bits=4, group=64)
    assert found.signal == pytest.approx(output_error(weights, hessian), rel=1e-5)
    assert found.error == pytest.approx(output_error(weights - found.decoded, hessian), rel=1e-4)


def test_generalizes(run):
    """On inputs that the Hessian never saw, of the same kind, most of the gain is there."""
    rng = np.random.default_rng(8)
    weights = rng.standard_normal((128, 256)).astype(np.float32)
    x = inputs(256, 4096, 11)
    seen, fresh = second_moments(x[:2048]), second_moments(x[2048:])
    plain = quantized(run, weights, seen, word="MEASURE", bits=4, group=128)
    better = quantized(run, weights, seen, bits=4, group=128)
    errors = [output_error(weights - q.decoded, fresh) for q in (plain, better)]
    assert errors[1] < 0.35 * errors[0]


def test_one_sample(run):
    """A Hessian of rank 1: the damping carries it, the output of that one sample is nearly exact."""
    rng = np.random.default_rng(4)
    weights = rng.standard_normal((32, 128)).astype(np.float32)
    hessian = second_moments(rng.standard_normal((1, 128)))
    plain = quantized(run, weights, hessian, word="MEASURE", bits=4, group=128)
    better = quantized(run, weights, hessian, bits=4, group=128)
    assert better.error < 0.1 * plain.error
    assert better.figures["error"] < 3 * plain.figures["error"]
