"""The NumPy forward of the bundled model (dit.py) against what PyTorch computed."""
import numpy as np
import pytest

import dit


@pytest.fixture(scope="module")
def run():
    """One reference run, each layer's input summed up as it passes by."""
    model, (noise, classes) = dit.Model(), dit.reference_noise()
    moments, rows, limits = {}, {}, {}

    def seen(layer, timestep, x):
        wide = x.astype(np.float64)
        moments[layer] = moments.get(layer, 0) + wide.T @ wide
        rows[layer] = rows.get(layer, 0) + len(x)
        limits.setdefault(layer, []).append((timestep, x.min(), x.max(), wide.mean(), wide.std()))
    samples = dit.watch(model, noise, classes, seen)
    return samples, {name: moments[name] / rows[name] for name in moments}, limits


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_forward(dtype):
    vectors = dit.load(dit.REFERENCE / "vectors.safetensors")
    eps = dit.Model(dtype=dtype).forward(vectors["forward.x"], vectors["forward.timestep"],
                                         vectors["forward.class"])
    assert eps.dtype == dtype and np.abs(vectors["forward.eps"]).max() > 1
    assert np.abs(eps - vectors["forward.eps"]).max() < 5e-6


def test_samples(run):
    reference = dit.load(dit.REFERENCE / "vectors.safetensors")["ddim.samples"]
    assert np.abs(run[0] - reference).max() < 2e-5


def test_second_moments(run):
    """The summed rows are those of the linear layers, in the right order of channels."""
    reference = dit.load(dit.REFERENCE / "hessians.safetensors")
    for name, moment in run[1].items():
        if name == "pos_embed.proj":
            continue
        shared = name.replace("to_k", "to_q").replace("to_v", "to_q")
        assert np.abs(moment - reference[shared]).max() <= 1e-4 * np.abs(reference[shared]).max(), name


def test_statistics(run):
    reference = dit.load(dit.REFERENCE / "activations.safetensors")
    for name, rows in run[2].items():
        rows = np.array(sorted(rows))
        assert np.array_equal(rows[:, 0], reference["timesteps"])
        for column, kind in enumerate(("min", "max", "mean", "std"), 1):
            expected = reference[f"{name}.act_{kind}"]
            assert np.abs(rows[:, column] - expected).max() <= 1e-3 * np.abs(expected).max(), name
