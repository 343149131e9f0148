"""Time groups, Markov metrics, boundary smoothing, equalization: against NumPy in float64, written
from their definitions."""
import ctypes
import itertools
import math

import numpy as np
import pytest

import aq_library as lib
import dit
from aq_reader import read_container
from conftest import LIBS, MADE, REPO, call, held, library_objects, stale
from tool_models import good, to_bfloat16, write_safetensors


@pytest.fixture(scope="session")
def library():
    target = MADE / "libarrowquant.so"
    with held("library"):
        if stale(target, [REPO / "arrowquant.h"]):
            target.parent.mkdir(parents=True, exist_ok=True)
            call(["gcc", "-shared", *library_objects(), "-o", target, *LIBS])
    return lib.Library(target)


@pytest.fixture(scope="module")
def reference(library):
    calibration = library.open(dit.REFERENCE / "activations.safetensors")
    yield lambda name: library.find(calibration, name)
    library.close(calibration)


def observed(library, timesteps, seed=0, rows=40, channels=24):
    """Activations whose spread drifts with the timestep, with a heavy tail, and their statistics."""
    random = np.random.default_rng(seed)
    data = {}
    for t in timesteps:
        x = random.standard_normal((rows, channels)) * math.exp(random.uniform(-2, 2))
        x[random.random(x.shape) < 0.01] *= 15
        data[t] = (x + random.uniform(-1, 1)).astype(np.float32)
    calibration = library.observe(("x", t, x) for t, x in data.items())
    return data, calibration


# ---------------------------------------------------------------- cuts

@pytest.mark.parametrize("count,total", [(1, 1000), (7, 1000), (10, 1000), (50, 1000), (100, 1000),
                                         (100, 13), (3, 1), (6, 7)])
def test_uniform(library, reference, count, total):
    groups = library.groups(reference("proj_out_2"), count, total)
    count = min(count, total)
    starts = [i * total // count for i in range(count)]
    assert groups["starts"].tolist() == starts
    lookup = [max(g for g in range(count) if starts[g] <= t) for t in range(total)]
    assert groups["lookup"].tolist() == lookup
    assert groups["at"] == [0, 0, count - 1, count - 1]


def ranges_of(layer, begin, end):
    n = layer.timestep_count
    low = np.ctypeslib.as_array(layer.min, (n,))[begin:end].min()
    high = np.ctypeslib.as_array(layer.max, (n,))[begin:end].max()
    return min(float(low), 0.0), max(float(high), 0.0)  # zero is always an integer of its own


def test_uniform_ranges(library, reference):
    """The integers of a group cover what was observed in it; a group that holds no observed
    timestep has those of the nearest."""
    layer = reference("transformer_blocks.1.ff.net.2")
    for count in (1, 10, 50, 100):
        groups = library.groups(layer, count)
        for g, start in enumerate(groups["starts"]):
            end = groups["starts"][g + 1] if g + 1 < count else 1000
            inside = [i for i in range(50) if start <= 20 * i < end]
            if not inside:
                inside = [min(range(50), key=lambda i: min(abs(20 * i - start), abs(20 * i - end + 1)))]
            low, high = ranges_of(layer, inside[0], inside[-1] + 1)
            for bits, levels in ((0, 255), (1, 15)):
                scale, zero = groups["scale"][bits][g, 0], groups["zero_point"][bits][g, 0]
                assert scale == np.float32((high - low) / levels)
                assert zero == round(-low / float(scale)) and 0 <= zero <= levels


def cost(layer, begin, end):
    low, high = ranges_of(layer, begin, end)
    return (end - begin) * (float(np.float32((high - low) / 255)) ** 2)


def starts_to_cut(groups, timesteps):
    return [int(np.searchsorted(timesteps, start)) for start in groups["starts"]]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_optimal_is_the_best_of_all(library, count):
    """Against every cut there is."""
    timesteps = [0, 3, 100, 101, 400, 555, 700, 701, 998]
    for seed in range(3):
        _, calibration = observed(library, timesteps, seed)
        layer = library.find(calibration, "x")
        groups = library.groups(layer, count, cut=lib.OPTIMAL)
        cut = starts_to_cut(groups, timesteps) + [len(timesteps)]
        found = sum(cost(layer, a, b) for a, b in zip(cut, cut[1:]))
        best = min(sum(cost(layer, a, b) for a, b in zip((0, *c), (*c, len(timesteps))))
                   for c in itertools.combinations(range(1, len(timesteps)), count - 1))
        assert found == pytest.approx(best, rel=1e-12)
        for g in range(1, count):  # half-way between two observed timesteps
            left, right = timesteps[cut[g] - 1], timesteps[cut[g]]
            assert groups["starts"][g] == math.ceil((left + right) / 2)
        library.close(calibration)


def test_optimal_gains_with_every_group(library, reference):
    for name in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.3.ff.net.2"):
        layer = reference(name)
        errors = []
        for count in range(1, 51):
            groups = library.groups(layer, count, cut=lib.OPTIMAL)
            cut = starts_to_cut(groups, np.arange(0, 1000, 20)) + [50]
            errors.append(sum(cost(layer, a, b) for a, b in zip(cut, cut[1:])))
        assert all(b <= a * (1 + 1e-12) for a, b in zip(errors, errors[1:]))
    assert len(library.groups(layer, 100, cut=lib.OPTIMAL)["starts"]) == 50  # no more than observed


# ---------------------------------------------------------------- integers

def rounded(x, scale, zero, levels):
    return (np.clip(np.rint(x / scale) + zero, 0, levels) - zero) * scale


@pytest.mark.parametrize("levels,bits", [(255, 0), (15, 1)])
def test_least_error(library, levels, bits):
    """On the data itself: no worse than min and max (as far as
    the sketch tells), about as good as a search over all ranges, and
    the expected error is the real one."""
    data, calibration = observed(library, [0, 500], 3, rows=400)
    layer = library.find(calibration, "x")
    groups = library.groups(layer, 2, range=lib.LEAST_ERROR)
    plain = library.groups(layer, 2)
    for g, t in enumerate((0, 500)):
        x = data[t].astype(np.float64)

        def error(low, high):
            scale = (high - low) / levels
            return ((x - rounded(x, scale, np.rint(-low / scale), levels)) ** 2).mean()
        scale = float(groups["scale"][bits][g, 0])
        zero = int(groups["zero_point"][bits][g, 0])
        found = ((x - rounded(x, scale, zero, levels)) ** 2).mean()
        best = min(error(x.min() * a, x.max() * b) for a in np.linspace(0.1, 1, 46)
                   for b in np.linspace(0.1, 1, 46))
        assert found <= best * 1.05
        assert found <= 1.02 * ((x - rounded(x, float(plain["scale"][bits][g, 0]),
                                              int(plain["zero_point"][bits][g, 0]), levels)) ** 2).mean()
        assert groups["error"][bits][g] == pytest.approx(found, rel=0.15)
    library.close(calibration)


def test_percentile(library):
    data, calibration = observed(library, [0], 5, rows=500)
    layer = library.find(calibration, "x")
    groups = library.groups(layer, 1, range=lib.PERCENTILE, percentile=99.0)
    low, high = np.percentile(data[0], [1, 99])
    scale = float(groups["scale"][0][0, 0])
    largest = np.abs(data[0]).max()
    assert scale * 255 == pytest.approx(high - low, abs=abs(high) / 32 + abs(low) / 32 + largest / 500)
    library.close(calibration)


def test_channel_groups(library):
    data, calibration = observed(library, [0, 900], 6, channels=40)
    layer = library.find(calibration, "x")
    groups = library.groups(layer, 2, channel_group=16)
    assert groups["scale"][0].shape == (2, 3)
    for g, t in enumerate((0, 900)):
        for k in range(3):
            part = data[t][:, 16 * k:16 * k + 16].astype(np.float64)
            scale = np.float32((part.max() - part.min()) / 255)
            assert groups["scale"][0][g, k] == scale
            assert groups["zero_point"][0][g, k] == round(-part.min() / float(scale))
    library.close(calibration)


def test_odd_layers(library):
    """Constant data, a single value, values of one sign: scales stay positive and finite, and the
    data come back."""
    cases = {"zeros": [0.0] * 8, "constant": [3.25] * 8, "negative": [-1e-3] * 8, "one": [5.0],
             "far": [1e6, 1e6 + 1], "positive": [1.0, 2.0, 3.0], "tiny": [1e-40, -1e-40]}
    calibration = library.observe((name, 0, np.array([row])) for name, row in cases.items())
    for name, row in cases.items():
        for rule in (lib.MIN_MAX, lib.PERCENTILE, lib.LEAST_ERROR):
            groups = library.groups(library.find(calibration, name), 3, range=rule)
            scale, zero = groups["scale"][0][:, 0], groups["zero_point"][0][:, 0]
            assert (scale > 0).all() and np.isfinite(scale).all(), (name, rule)
            if rule != lib.PERCENTILE:
                x = np.array(row)
                back = rounded(x, float(scale[0]), int(zero[0]), 255)
                exact = 1e-6 if rule == lib.MIN_MAX else 1 / 32  # as far as a sketch tells
                assert np.abs(back - x).max() <= max(0.51 * float(scale[0]), exact * np.abs(x).max())
    library.close(calibration)


@pytest.mark.parametrize("arguments,status", [({"count": 0}, 2), ({"count": 101}, 2),
                                              ({"count": 5, "total": 0}, 2),
                                              ({"count": 5, "range": 1, "percentile": 20}, 18)])
def test_refused(library, reference, arguments, status):
    with pytest.raises(lib.Failed) as failure:
        library.groups(reference("proj_out_2"), **arguments)
    assert failure.value.status == status


def test_moments_alone_have_no_groups(library):
    calibration = library.open(dit.REFERENCE / "hessians.safetensors")
    with pytest.raises(lib.Failed, match="no timesteps"):
        library.groups(library.find(calibration, "proj_out_2"), 3)
    library.close(calibration)


# ---------------------------------------------------------------- Markov metrics

def markov(scales, zeros, threshold):
    """As the documents of the system define them."""
    scales, zeros = np.array(scales, np.float32).astype(float), np.array(zeros, float)
    jumps = np.abs(np.diff(scales)) / scales[:-1]
    zero_jumps = np.abs(np.diff(zeros)) / 255
    scores = 1 - np.minimum(1, (jumps + zero_jumps) / 2)
    violations = [(i, j, z, "high" if j > .5 else "medium" if j > .3 else "low")
                  for i, (j, z) in enumerate(zip(jumps, zero_jumps)) if j > threshold]
    return scores, violations


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 1.0])
def test_markov(library, threshold):
    random = np.random.default_rng(2)
    for count in (1, 2, 3, 10, 100):
        scales = np.exp(random.normal(0, 0.4, count)).astype(np.float32)
        zeros = random.integers(0, 256, count)
        found = library.markov(scales, zeros, threshold)
        scores, violations = markov(scales, zeros, threshold)
        assert found.boundary_count == count - 1
        assert np.allclose(found.boundary_scores[:count - 1], scores, rtol=1e-12)
        assert found.smoothness_score == pytest.approx(scores.mean() if count > 1 else 1)
        assert found.violation_count == len(violations)
        assert found.is_valid == (not violations)
        for have, want in zip(found.violations, violations):
            name = library.c.aq_severity_name(have.severity).decode()
            assert (have.boundary, name) == (want[0], want[3])
            assert have.scale_jump == pytest.approx(want[1])
            assert have.zero_point_jump == pytest.approx(want[2])


def test_markov_thresholds(library):
    """The severities meet at .3 and .5; .3 itself is no violation of .3."""
    found = library.markov([4, 5.25, 4, 6.5, 6.5], [0, 0, 0, 0, 255], 0.3)
    assert [(v.boundary, v.severity) for v in found.violations[:found.violation_count]] == [
        (0, 1), (2, 2)]
    assert found.boundary_scores[3] == 0.5 and found.smoothness_score < 1


# ---------------------------------------------------------------- smoothing

def ramp(alpha, interpolation):
    return [alpha, 3 * alpha ** 2 - 2 * alpha ** 3, 1 / (1 + np.exp(-6 * (alpha - 0.5)))][interpolation]


def smoothed(values, window, interpolation):
    """Each step becomes a ramp of its own; their sum."""
    values = np.asarray(values, float)
    count = len(values)
    out = np.full(count, values[0])
    for b in range(count - 1):
        left, right = min(window, b + 1), min(window, count - 1 - b)
        share = np.zeros(count)
        share[b + right + 1:] = 1
        for k in range(1, left + right + 1):
            share[b - left + k] = ramp(k / (left + right + 1), interpolation)
        out += share * (values[b + 1] - values[b])
    return out


@pytest.mark.parametrize("interpolation", [0, 1, 2])
@pytest.mark.parametrize("window", [1, 3, 5, 20])
def test_smoothing(library, window, interpolation):
    random = np.random.default_rng(window)
    for count in (1, 2, 3, 10, 40, 100):
        scales = np.exp(random.normal(0, 1, count)).astype(np.float32)
        zeros = random.integers(0, 256, count)
        found_scales, found_zeros = library.smooth(scales, zeros, window, interpolation)
        assert np.allclose(found_scales, smoothed(scales, window, interpolation), rtol=1e-5)
        assert np.abs(found_zeros - smoothed(zeros, window, interpolation)).max() <= 0.5 + 1e-9
        assert found_scales.min() >= scales.min() * (1 - 1e-6)
        assert found_scales.max() <= scales.max() * (1 + 1e-6)


@pytest.mark.parametrize("interpolation", [0, 1, 2])
def test_smoothing_halves_a_jump(library, interpolation):
    for count, boundary in ((2, 0), (3, 1), (10, 4), (10, 0), (10, 8)):
        scales = np.where(np.arange(count) <= boundary, 1.0, 3.0)
        found, _ = library.smooth(scales, [7] * count, 3, interpolation)
        assert np.abs(np.diff(found)).max() <= 0.5 * 2 + 1e-6
    same, zeros = library.smooth([0.37] * 10, [12] * 10, 3, interpolation)
    assert (same == np.float32(0.37)).all() and (zeros == 12).all()


def test_smoothing_refuses(library):
    for window, interpolation in ((0, 0), (21, 0), (3, 9)):
        with pytest.raises(lib.Failed):
            library.smooth([1, 2], [0, 0], window, interpolation)


# ---------------------------------------------------------------- equalization

@pytest.fixture(scope="module")
def layer_and_weight(library, reference):
    name = "transformer_blocks.1.ff.net.2"
    return reference(name), dit.Model().weights[name]


def scales_of(weight, absmax, migration):
    w = np.abs(weight).max(0).astype(float)
    a = absmax.astype(float)
    good = (w > 0) & (a > 0)
    s = np.ones(len(w))
    s[good] = w[good] ** (1 - migration) / a[good] ** migration
    s[good] /= np.exp(np.log(s[good]).mean())
    return s


@pytest.mark.parametrize("migration", [0.0, 0.25, 0.5, 0.8, 1.0])
def test_equalization_scales(library, layer_and_weight, migration):
    layer, weight = layer_and_weight
    absmax = np.ctypeslib.as_array(layer.pooled_absmax, (512,))
    scales, out = library.equalize(weight, layer, migration=migration)
    expected = scales_of(weight, absmax, migration)
    assert np.allclose(scales, expected, rtol=1e-6) and out.migration == migration
    if migration == 0.5:  # the geometric mean apart, the rule sqrt(max|W| / max|X|)
        rule = np.sqrt(np.abs(weight).max(0) / absmax)
        assert np.allclose(scales / scales[0], rule / rule[0], rtol=1e-5)


def test_the_fold_is_exact(library, layer_and_weight):
    """In float64 the product of the folded weight and the scaled input is the product as it was."""
    layer, weight = layer_and_weight
    scales, _ = library.equalize(weight, layer, migration=0.5)
    x = np.random.default_rng(1).standard_normal((200, 512)) * 3
    before = x @ weight.astype(np.float64).T
    after = (x * scales.astype(np.float64)) @ (weight.astype(np.float64) / scales).T
    assert np.abs(after - before).max() <= 1e-13 * np.abs(before).max()
    folded = np.ascontiguousarray(weight.copy())
    library.c.aq_fold_columns(lib.pointer(folded, ctypes.c_float), ctypes.c_uint64(128),
                              ctypes.c_uint64(512), lib.pointer(scales, ctypes.c_float))
    assert np.array_equal(folded, weight / scales)
    # into the norm before it: the same again
    gain = np.random.default_rng(2).uniform(0.5, 2, 512).astype(np.float32)
    shift = np.random.default_rng(3).standard_normal(512).astype(np.float32)
    new_gain, new_shift = gain.copy(), shift.copy()
    library.c.aq_fold_norm(lib.pointer(new_gain, ctypes.c_float),
                           lib.pointer(new_shift, ctypes.c_float), ctypes.c_uint64(512),
                           lib.pointer(scales, ctypes.c_float))
    normed = x * gain.astype(float) + shift
    assert np.allclose(x * new_gain.astype(float) + new_shift, normed * scales, rtol=2e-7,
                       atol=1e-6)


def bfloat16(values):
    """The nearest numbers of BF16."""
    bits = np.frombuffer(to_bfloat16(values), "<u2").astype(np.uint32) << 16
    return bits.view(np.float32).reshape(np.shape(values))


def linears_after_a_norm(aq, library, folder, gain, shift, weights, x):
    """What q, k and v give of x when they are quantized to 8 bits and their input, by one scale."""
    write_safetensors(folder / "m.safetensors", {name: ("BF16", w) for name, w in weights.items()})
    good(aq, "quantize", folder / "m.safetensors", folder / "q.safetensors", "--bits", 8,
         "--group-size", 32, "--overwrite")
    good(aq, "dequantize", folder / "q.safetensors", folder / "d.safetensors", "--dtype", "f32",
         "--overwrite")
    back = {name: value for name, (_, value) in read_container(folder / "d.safetensors")[0].items()}
    normed = x * gain + shift
    calibration = library.observe([("norm", 0, normed)])
    groups = library.groups(library.find(calibration, "norm"), 1)
    library.close(calibration)
    stored = rounded(normed, groups["scale"][0][0], groups["zero_point"][0][0], 255)
    return {name: stored @ back[name].T.astype(float) for name in weights}


def test_folded_into_the_norm_before(aq, library, tmp_path):
    """As docs/CALIBRATION.md has it: one set of scales for all layers behind an affine norm, rounded to
    powers of two. The model is the same to the bit, in BF16 too, and survives 8 bits better."""
    random = np.random.default_rng(11)
    gain, shift = (random.uniform(0.5, 2, 64) * spread for spread in (1, 0.1))
    gain[[3, 40]] *= 50
    bf16 = [bfloat16(part) for part in (gain, shift)]
    weights = {f"attn.to_{part}.weight": bfloat16(0.05 * random.standard_normal((48, 64)))
               for part in "qkv"}
    x = random.standard_normal((200, 64))  # what the norm gives before gain and shift
    calibration = library.observe([("norm", 0, x * bf16[0] + bf16[1])])
    scales, found = library.equalize(np.concatenate(list(weights.values())),
                                     library.find(calibration, "norm"), bits=8, group_size=32)
    library.close(calibration)
    assert found.error < found.error_without
    scales = np.exp2(np.rint(np.log2(scales))).astype(np.float32)
    folded = {name: value.copy() for name, value in weights.items()}
    new = [part.copy() for part in bf16]
    for value in folded.values():
        library.c.aq_fold_columns(lib.pointer(value, ctypes.c_float), ctypes.c_uint64(48),
                                  ctypes.c_uint64(64), lib.pointer(scales, ctypes.c_float))
    library.c.aq_fold_norm(lib.pointer(new[0], ctypes.c_float), lib.pointer(new[1], ctypes.c_float),
                           ctypes.c_uint64(64), lib.pointer(scales, ctypes.c_float))
    assert all(np.array_equal(bfloat16(value), value) for value in [*new, *folded.values()])
    exact = {name: (x * bf16[0] + bf16[1])[:, None, :] * weights[name].astype(float) for name in weights}
    for name in weights:
        assert np.array_equal((x * new[0] + new[1])[:, None, :] * folded[name].astype(float), exact[name])
    plain, better = (linears_after_a_norm(aq, library, tmp_path, *norm, parts, x)
                     for norm, parts in ((bf16, weights), (new, folded)))
    error = [sum(np.square(got[name] - exact[name].sum(2)).sum() for name in weights)
             for got in (plain, better)]
    assert error[1] < 0.3 * error[0]


def test_search_finds_the_best(library, layer_and_weight):
    """No fixed strength has a lower expected error; on data with an outlier channel it gains."""
    layer, weight = layer_and_weight
    _, best = library.equalize(weight, layer)
    fixed = [library.equalize(weight, layer, migration=i / 20)[1].error for i in range(21)]
    assert best.error == pytest.approx(min([*fixed, best.error_without]), rel=1e-12)
    random = np.random.default_rng(4)
    x = random.standard_normal((300, 64))
    x[:, 5] *= 60
    calibration = library.observe([("x", 0, x)])
    w = random.standard_normal((48, 64)) * 0.05
    scales, out = library.equalize(w, library.find(calibration, "x"), bits=8, group_size=64)
    assert out.error < 0.5 * out.error_without and scales[5] < scales.mean() / 4
    # and the data agree: 8-bit inputs, weights as they are
    def input_error(s):
        y = x * s
        step = (y.max() - y.min()) / 255
        apart = (rounded(y, step, np.rint(-y.min() / step), 255) - y) / s
        return ((apart @ w.T) ** 2).sum() / ((x @ w.T) ** 2).sum()
    assert input_error(scales.astype(float)) < 0.3 * input_error(np.ones(64))
    library.close(calibration)


def test_dead_channels(library):
    """A channel that is never active, and one without weights, are left alone."""
    random = np.random.default_rng(4)
    x, w = random.standard_normal((50, 32)), random.standard_normal((16, 32))
    x[:, 3] = 0
    w[:, 9] = 0
    calibration = library.observe([("x", 0, x)])
    scales, out = library.equalize(w, library.find(calibration, "x"), group_size=32, migration=0.5)
    assert scales[3] == 1 and scales[9] == 1 and np.isfinite(out.error) and (scales > 0).all()
    zeros, nothing = library.equalize(np.zeros((4, 32)), library.find(calibration, "x"), group_size=32)
    assert (zeros == 1).all() and math.isnan(nothing.migration)
    library.close(calibration)


def test_smoothed_activations(library):
    x = np.random.default_rng(4).standard_normal(100).astype(np.float32)
    for alpha in (0.0, 0.3, 1.0):
        y = x.copy()
        library.c.aq_smooth_activations(lib.pointer(y, ctypes.c_float), ctypes.c_size_t(100),
                                        ctypes.c_double(alpha))
        wide = x.astype(float)
        assert np.allclose(y, wide * (1 - alpha) + wide.mean() * alpha, atol=1e-7)
