"""Calibration files: read, merged, written, refused; against NumPy on the same arrays."""
import json
import os
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dit

ACTIVATIONS = dit.REFERENCE / "activations.safetensors"
HESSIANS = dit.REFERENCE / "hessians.safetensors"
FIGURES = ("min", "max", "mean", "std", "absmax", "sqmean")


@pytest.fixture(scope="module")
def run(tool):
    program = tool("calib")

    def call(*words, fails=False, text=False, samples=0):
        done = subprocess.run([program, *map(str, words)], capture_output=True, text=True,
                              timeout=100, env={**os.environ, "SAMPLES": str(samples)})
        assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
        return done.stdout if text or not done.stdout else json.loads(done.stdout)
    return call


def weighted(matrix):
    """As tool_calib sums second moments."""
    flat = matrix.astype(np.float64).ravel()
    return float((flat * (1 + np.arange(flat.size) % 7)).sum())


def test_reference_statistics(run):
    """The layout of the reference run's files: every figure, and what follows from them."""
    layers = run("show", ACTIVATIONS, HESSIANS)["layers"]
    stored, moments = load_file(ACTIVATIONS), load_file(HESSIANS)
    assert sorted(layers) == sorted({name.rpartition(".act_")[0] for name in stored} - {""})
    for name, layer in layers.items():
        assert layer["timesteps"] == stored["timesteps"].tolist() and layer["rows"] == []
        for figure in FIGURES:
            expected = stored[f"{name}.act_{figure}"].astype(np.float32).ravel()
            assert np.array_equal(np.float32(layer[figure]), expected), (name, figure)
        squares = stored[f"{name}.act_sqmean"].astype(np.float64)
        assert np.allclose(layer["pooled_sqmean"], squares.mean(0), rtol=1e-6)
        assert np.array_equal(np.float32(layer["pooled_absmax"]),
                              stored[f"{name}.act_absmax"].max(0).astype(np.float32))
        shared = name.replace("to_k", "to_q").replace("to_v", "to_q")
        if name == "pos_embed.proj":
            assert "hessian_trace" not in layer
        else:
            assert layer["hessian_total"] == pytest.approx(weighted(moments[shared]), rel=1e-6)


def test_moments_alone(run):
    """Without other figures the diagonal gives the mean squares; a self-attention's to_k and to_v
    are found under to_q."""
    layers = run("show", HESSIANS)["layers"]
    for name, matrix in load_file(HESSIANS).items():
        assert np.array_equal(np.float32(layers[name]["pooled_sqmean"]), np.diag(matrix))
        assert layers[name]["timesteps"] == [] and layers[name]["sqmean"] is None


def test_merge_is_faithful(run, tmp_path):
    """Written and read again, every figure is the same; so is the file."""
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    run("merge", first, ACTIVATIONS, HESSIANS)
    run("merge", second, first)
    assert first.read_bytes() == second.read_bytes()
    assert run("show", first) == run("show", ACTIVATIONS, HESSIANS)


def figures_of(rows, timesteps, name, with_rows=True):
    """Statistics of {timestep: [rows, channels]} in the layout of the files."""
    out = {f"{name}.act_timesteps": np.array(timesteps, np.int64)}
    blocks = [rows[t].astype(np.float64) for t in timesteps]
    for figure in ("min", "max", "mean", "std"):
        out[f"{name}.act_{figure}"] = np.array([getattr(b, figure)() for b in blocks], np.float32)
    out[f"{name}.act_absmax"] = np.array([np.abs(b).max(0) for b in blocks], np.float32)
    out[f"{name}.act_sqmean"] = np.array([(b * b).mean(0) for b in blocks], np.float32)
    joined = np.concatenate(blocks)
    out[f"{name}.hessian"] = (joined.T @ joined / len(joined)).astype(np.float32)
    if with_rows:
        out[f"{name}.act_rows"] = np.array([len(b) for b in blocks], np.int64)
        out[f"{name}.hessian_rows"] = np.array([len(joined)], np.int64)
    return out


def test_unknown_rows_are_not_guessed(run, tmp_path):
    random = np.random.default_rng(5)
    rows = {1: random.standard_normal((7, 5)), 2: random.standard_normal((7, 5))}
    known, unknown = figures_of(rows, [1, 2], "x"), figures_of(rows, [1, 2], "x", False)
    save_file(known, tmp_path / "known.safetensors")
    save_file(unknown, tmp_path / "unknown.safetensors")
    found = run("show", tmp_path / "known.safetensors", tmp_path / "unknown.safetensors", fails=True)
    assert found["error"] == "metadata" and "act_rows" in found["message"]
    # both unknown: equal
    del unknown["x.hessian"]
    save_file(unknown, tmp_path / "unknown.safetensors")
    layer = run("show", tmp_path / "unknown.safetensors",
                tmp_path / "unknown.safetensors")["layers"]["x"]
    assert np.allclose(layer["sqmean"], unknown["x.act_sqmean"].ravel()) and layer["rows"] == []


def test_two_runs_weigh_by_rows(run, tmp_path):
    """Two files with overlapping timesteps give what one run over all rows would have given."""
    random = np.random.default_rng(5)
    one = {t: random.standard_normal((7, 5)) * t + 2 for t in (1, 3, 4)}
    two = {t: random.standard_normal((31, 5)) - t for t in (2, 3)}
    save_file(figures_of(one, [1, 3, 4], "x"), tmp_path / "one.safetensors")
    save_file(figures_of(two, [2, 3], "x"), tmp_path / "two.safetensors")
    layer = run("show", tmp_path / "one.safetensors", tmp_path / "two.safetensors")["layers"]["x"]
    both = {1: one[1], 2: two[2], 3: np.concatenate([one[3], two[3]]), 4: one[4]}
    expected = figures_of(both, [1, 2, 3, 4], "x")
    assert layer["timesteps"] == [1, 2, 3, 4] and layer["rows"] == [7, 31, 38, 7]
    for figure in FIGURES:
        assert np.allclose(layer[figure], expected[f"x.act_{figure}"].ravel(), rtol=2e-6,
                           atol=1e-6), figure
    everything = np.concatenate(list(both.values()))
    assert np.allclose(layer["pooled_sqmean"], (everything ** 2).mean(0), rtol=1e-5)
    assert layer["hessian_rows"] == len(everything)
    moments = everything.T @ everything / len(everything)
    assert layer["hessian_total"] == pytest.approx(weighted(moments), rel=1e-5)


def good():
    random = np.random.default_rng(1)
    return figures_of({0: random.standard_normal((9, 4)), 5: random.standard_normal((9, 4))},
                      [0, 5], "x")


def edited(name, change):
    tensors = good()
    tensors[name] = change(tensors[name].copy())
    return tensors


def put(at, value):
    def change(array):
        array.ravel()[at] = value
        return array
    return change


HOSTILE = {
    "nan": (edited("x.act_sqmean", put(3, np.nan)), "corrupt", "x.act_sqmean"),
    "infinite": (edited("x.act_max", put(1, np.inf)), "corrupt", "x.act_max"),
    "min above max": (edited("x.act_min", put(0, 1e6)), "corrupt", "x.act_min"),
    "negative square": (edited("x.act_sqmean", put(0, -1)), "corrupt", "x.act_sqmean"),
    "negative magnitude": (edited("x.act_absmax", put(0, -1)), "corrupt", "x.act_absmax"),
    "negative deviation": (edited("x.act_std", put(0, -1)), "corrupt", "x.act_std"),
    "timesteps descend": (edited("x.act_timesteps", put(0, 7)), "corrupt", "x.act_timesteps"),
    "timesteps of floats": (edited("x.act_timesteps", np.float32), "corrupt", "x.act_timesteps"),
    "no rows": (edited("x.act_rows", put(0, 0)), "corrupt", "x.act_rows"),
    "one timestep too few": (edited("x.act_mean", lambda a: a[:1]), "shape", "x.act_mean"),
    "two widths": (edited("x.act_absmax", lambda a: a[:, :3].copy()), "shape", "x.act_sqmean"),
    "not square": (edited("x.hessian", lambda a: a[:2].copy()), "shape", "x.hessian"),
    "another width": (edited("x.hessian", lambda a: np.eye(5, dtype=np.float32)), "shape",
                      "x.hessian"),
    "integers": (edited("x.act_sqmean", np.int32), "corrupt", "x.act_sqmean"),
    "no timesteps": ({k: v for k, v in good().items() if "timesteps" not in k}, "corrupt", "x"),
    "no minimum": ({k: v for k, v in good().items() if "min" not in k}, "metadata", "x"),
    "nothing": ({"timesteps": np.arange(3)}, "metadata", ""),
    "a model": ({"x.weight": np.eye(4, dtype=np.float32)}, "metadata", "x.weight"),
    "twice": ({**good(), "x": np.eye(4, dtype=np.float32)}, "corrupt", ""),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_refused(run, tmp_path, what):
    tensors, status, tensor = HOSTILE[what]
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    found = run("show", path, fails=True)
    assert found["error"] == status and "bad.safetensors" in found["message"], found
    assert found["tensor"] == tensor or what == "twice"


@pytest.mark.parametrize("change", [put(1, np.nan), put(0, np.inf), put(5, -1), put(1, 1e9)])
def test_moments_are_checked_when_read(run, tmp_path, change):
    """They are read late, and looked at then."""
    tensors = edited("x.hessian", change)
    save_file(tensors, tmp_path / "bad.safetensors")
    found = run("show", tmp_path / "bad.safetensors", fails=True, text=True)
    assert '"error":"corrupt","tensor":"x"' in found


# ---------------------------------------------------------------- JSON lines

def lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_json_lines(run, tmp_path):
    """Flat with a shape, nested, one row; the figures are those of NumPy on all rows."""
    random = np.random.default_rng(8)
    parts = {t: random.standard_normal((2, 3, 6)).astype(np.float32) for t in (40, 0)}
    one = random.standard_normal(6).astype(np.float32)
    path = lines(tmp_path / "x.jsonl", [
        {"layer": "a.b", "timestep": 40, "data": parts[40].ravel().tolist(), "shape": [2, 3, 6]},
        {"timestep": 0.0, "shape": [6, 6], "data": parts[0].tolist(), "layer": "a.b", "more": [{}]},
        {"layer": "a.b", "timestep": 0, "data": one.tolist()},
    ])
    path.write_text(path.read_text().replace("\n", "\n\n \r\n", 1).replace("[6, 6]", "[6, 6]")
                    .replace('"shape": [6, 6], ', ""))
    layer = run("show", path)["layers"]["a.b"]
    rows = {40: parts[40].reshape(-1, 6), 0: np.concatenate([parts[0].reshape(-1, 6), one[None]])}
    expected = figures_of(rows, [0, 40], "x")
    assert layer["timesteps"] == [0, 40] and layer["rows"] == [7, 6] and layer["channels"] == 6
    for figure in FIGURES:
        assert np.allclose(layer[figure], expected[f"x.act_{figure}"].ravel(), rtol=1e-6), figure
    assert layer["hessian_total"] == pytest.approx(weighted(expected["x.hessian"]), rel=1e-5)
    assert layer["hessian_rows"] == 13


def test_json_lines_are_limited(run, tmp_path):
    """`samples` records of each layer and timestep; the rest is read and left."""
    records = [{"layer": name, "timestep": t, "data": [float(i), 1.0]}
               for i in range(5) for name in "ab" for t in (1, 2)]
    path = lines(tmp_path / "x.jsonl", records)
    assert run("show", path)["layers"]["a"]["rows"] == [5, 5]
    limited = run("show", path, samples=2)["layers"]
    assert limited["a"]["rows"] == limited["b"]["rows"] == [2, 2] and limited["a"]["max"] == [1, 1]


def test_json_lines_and_files_merge(run, tmp_path):
    random = np.random.default_rng(3)
    rows = random.standard_normal((20, 4)).astype(np.float32)
    save_file(figures_of({7: rows[:9]}, [7], "x"), tmp_path / "one.safetensors")
    lines(tmp_path / "two.jsonl", [{"layer": "x", "timestep": 7, "data": rows[9:].tolist()}])
    merged = tmp_path / "both.safetensors"
    run("merge", merged, tmp_path / "one.safetensors", tmp_path / "two.jsonl")
    layer = run("show", merged)["layers"]["x"]
    expected = figures_of({7: rows}, [7], "x")
    assert layer["rows"] == [20] and layer["hessian_rows"] == 20
    assert np.allclose(layer["sqmean"], expected["x.act_sqmean"].ravel(), rtol=1e-6)
    assert layer["hessian_total"] == pytest.approx(weighted(expected["x.hessian"]), rel=1e-5)


def test_a_long_line(run, tmp_path):
    values = np.random.default_rng(1).standard_normal(200000).round(3)
    path = lines(tmp_path / "x.jsonl", [{"layer": "x", "timestep": 0, "data": values.tolist(),
                                         "shape": [100000, 2]}] * 2)
    layer = run("show", path)["layers"]["x"]
    assert layer["rows"] == [200000] and layer["mean"][0] == pytest.approx(values.mean(), abs=1e-7)


@pytest.mark.parametrize("text", [
    '{"layer": "x", "timestep": 0, "data": [1, 2], "shape": [3, 1]}',
    '{"layer": "x", "timestep": 0, "data": [[1, 2], [3]]}',
    '{"layer": "x", "timestep": 0, "data": [1, [2]]}',
    '{"layer": "x", "timestep": 0, "data": [[1], 2]}',
    '{"layer": "x", "timestep": 0, "data": [1, NaN]}',
    '{"layer": "x", "timestep": 0, "data": [1, "2"]}',
    '{"layer": "x", "timestep": 0, "data": []}',
    '{"layer": "x", "timestep": 0, "data": 1}',
    '{"layer": "x", "timestep": 0.5, "data": [1]}',
    '{"layer": "x", "timestep": 0}',
    '{"layer": "x", "data": [1]}',
    '{"layer": 7, "timestep": 0, "data": [1]}',
    '{"layer": "a\\u0000b", "timestep": 0, "data": [1]}',
    '{"layer": "x", "timestep": 0, "data": [1]} {}',
    '{"layer": "x", "timestep": 0, "data": [1], "data": [1]}',
    '{"layer": "x", "timestep": 0, "data": [1',
    '[1]', 'x', '{"layer": "x", "timestep": 0, "shape": [1, 0], "data": []}',
    '{"layer": "x", "timestep": 0, "data": [1], "shape": [18446744073709551615, 2]}',
])
def test_malformed_lines(run, tmp_path, text):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"layer": "x", "timestep": 3, "data": [1]}\n' + text + "\n")
    found = run("show", path, fails=True, text=True)
    assert '"error":"corrupt"' in found and "bad.jsonl" in found and "line 2" in found


def test_a_number_beyond_f32(run, tmp_path):
    path = lines(tmp_path / "bad.jsonl", [{"layer": "x", "timestep": 3, "data": [1e300]}])
    found = run("show", path, fails=True)
    assert found["error"] == "argument" and found["tensor"] == "x"


def test_nothing_in_a_file(run, tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    assert run("show", path, fails=True)["error"] == "metadata"
