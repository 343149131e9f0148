"""Runs with calibration files: which layers have statistics, what is said, what is refused."""
import json
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import dit

ACTIVATIONS = dit.REFERENCE / "activations.safetensors"


def quantize(aq, out, *words, status=0, model=dit.DIGITS):
    done = subprocess.run([aq, "quantize", model, out, "--json", *map(str, words)],
                          capture_output=True, text=True, timeout=200)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout) if status == 0 else done.stderr


def some(path, keep, change=lambda name, value: value):
    """Statistics of the layers that `keep` chooses."""
    stored = load_file(ACTIVATIONS)
    save_file({name: change(name, value) for name, value in stored.items()
               if name == "timesteps" or keep(name)}, path)
    return path


def test_reference_statistics(aq, tmp_path):
    """Nothing is left over and nothing is missing: the notes say nothing of it."""
    notes = quantize(aq, tmp_path / "out", "--calibration", ACTIVATIONS)["notes"]
    assert not any("data-free" in note or "not in the model" in note for note in notes)


def test_missing_and_unknown_layers(aq, tmp_path):
    """A layer without statistics is quantized data-free, one that the model lacks is ignored; both
    are said."""
    path = some(tmp_path / "some.safetensors", lambda name: "blocks.0." in name and "to_out" not in name)
    extra = {f"gone.{key.rpartition('.')[2]}": value for key, value in load_file(path).items()
             if key.startswith("transformer_blocks.0.attn1.to_q.")}
    save_file({**load_file(path), **extra}, path)
    notes = quantize(aq, tmp_path / "out", "--calibration", path)["notes"]
    assert "calibration: 1 layers are not in the model: gone" in notes
    # 4 blocks of 7 matrices that the policy quantizes, of which 6 have statistics
    missing, = (note for note in notes if "no statistics" in note)
    assert missing.startswith("calibration: 22 quantized layers have no statistics and run data-free: "
                              "transformer_blocks.0.attn1.to_out.0.weight, ")


def test_another_model(aq, tmp_path):
    path = some(tmp_path / "none.safetensors", lambda name: False)
    save_file({**load_file(path), "a.act_absmax": np.ones((50, 3), np.float32),
               **{f"a.act_{figure}": np.ones(50, np.float32) for figure in ("min", "max", "mean", "std")}},
              path)
    error = quantize(aq, tmp_path / "out", "--calibration", path, status=1)
    assert "none of the 1 layers" in error and not (tmp_path / "out").exists()


def test_another_width(aq, tmp_path):
    def narrow(name, value):
        return value[:, :64].copy() if value.ndim == 2 and "ff.net.0" in name else value
    path = some(tmp_path / "narrow.safetensors", lambda name: True, narrow)
    error = quantize(aq, tmp_path / "out", "--calibration", path, status=1)
    assert "64 input channels" in error and "128 columns" in error and "ff.net.0.proj" in error


def test_nan_in_statistics(aq, tmp_path):
    def spoil(name, value):
        if name.endswith("blocks.2.attn1.to_q.act_sqmean"):
            value = value.copy()
            value[7, 3] = np.nan
        return value
    path = some(tmp_path / "nan.safetensors", lambda name: True, spoil)
    error = quantize(aq, tmp_path / "out", "--calibration", path, status=1)
    assert "transformer_blocks.2.attn1.to_q.act_sqmean: element 899 is NaN or infinite" in error


def test_no_file(aq, tmp_path):
    error = quantize(aq, tmp_path / "out", "--calibration", tmp_path / "nothing", status=1)
    assert "nothing" in error and "no such file" in error


@pytest.mark.parametrize("field", ["enable_time_aware", "enable_spatial"])
def test_asked_for_without_statistics(aq, tmp_path, field):
    """A profile's default runs data-free and says so; an explicit request fails."""
    error = quantize(aq, tmp_path / "out", "--set", f"{field}=true", status=1)
    assert field in error and "activation statistics" in error
    notes = quantize(aq, tmp_path / "out")["notes"]
    assert any("data-free" in note for note in notes)


# ---------------------------------------------------------------- time groups of a run

def groups_of(aq, out):
    done = subprocess.run([aq, "inspect", out, "--json", "--verify"], capture_output=True, text=True,
                          timeout=100)
    assert done.returncode == 0, done.stderr
    return {x["name"]: x["time_groups"] for x in json.loads(done.stdout)["tensors"]
            if "time_groups" in x}


@pytest.mark.parametrize("words,count", [([], 10), (["--time-groups", 3], 3),
                                         (["--time-groups", 100, "--time-cut", "optimal"], 50)])
def test_time_groups_are_stored(aq, tmp_path, words, count):
    """Each quantized layer has them; min and max of what was observed in each group, because these
    statistics hold no sketch; and a run without time awareness has none."""
    notes = quantize(aq, tmp_path / "out", "--calibration", ACTIVATIONS, "--set",
                     "enable_spatial=false", *words)["notes"]
    assert any(f"time groups: {count} of them for the inputs of 28 layers" in note for note in notes)
    assert any("no sketch" in note for note in notes)
    stored, groups = load_file(ACTIVATIONS), groups_of(aq, tmp_path / "out")
    assert len(groups) == 28
    for name, found in groups.items():
        low, high = (stored[f"{name[:-7]}.act_{end}"] for end in ("min", "max"))
        assert found["total_timesteps"] == 1000 and len(found["starts"]) == count
        ends = [*found["starts"][1:], 1000]
        for g, (start, end) in enumerate(zip(found["starts"], ends)):
            inside = (stored["timesteps"] >= start) & (stored["timesteps"] < end)
            assert inside.any()
            for bits, levels in ((8, 255), (4, 15)):
                least, most = min(low[inside].min(), 0), max(high[inside].max(), 0)
                scale = np.float32((float(most) - float(least)) / levels)
                assert found[f"scales_{bits}"][g] == pytest.approx(float(scale), rel=1e-7)
                assert found[f"zero_points_{bits}"][g] == round(-float(least) / float(scale))
    if not words:
        assert groups[name]["starts"] == list(range(0, 1000, 100))


def test_time_groups_change_nothing_else(aq, tmp_path):
    """Codes and parameters are the same; the plain model that comes back is, too."""
    plain = "--set", "enable_spatial=false"  # which looks at the inputs' rounding too
    quantize(aq, tmp_path / "with", "--calibration", ACTIVATIONS, *plain)
    quantize(aq, tmp_path / "without", "--calibration", ACTIVATIONS, *plain, "--set",
             "enable_time_aware=false")
    with_, without = (dit.load(tmp_path / name / "transformer/diffusion_pytorch_model.safetensors")
                      for name in ("with", "without"))
    assert set(with_) - set(without) == {f"{name}.aq_act_{part}" for name in groups_of(
        aq, tmp_path / "with") for part in ("starts", "scales", "zeros")}
    assert all(np.array_equal(with_[name], value) for name, value in without.items())
    assert groups_of(aq, tmp_path / "without") == {}
    for name in ("with", "without"):
        done = subprocess.run([aq, "dequantize", tmp_path / name, tmp_path / f"plain-{name}", "--quiet"],
                              capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"plain-{name}/transformer/diffusion_pytorch_model.safetensors")
                     .read_bytes() for name in ("with", "without"))
    assert first == second


def test_smoothing_makes_it_smoother(aq, tmp_path):
    def markov(out, *words):
        done = subprocess.run([aq, "markov", out, "--json", *words], capture_output=True, text=True,
                              timeout=100)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)
    quantize(aq, tmp_path / "rough", "--calibration", ACTIVATIONS)
    quantize(aq, tmp_path / "smooth", "--calibration", ACTIVATIONS, "--set",
             "thermodynamic.boundary_smoothing.enabled=true")
    rough, smooth = markov(tmp_path / "rough", "--threshold", "0.05"), markov(
        tmp_path / "smooth", "--threshold", "0.05")
    assert smooth["smoothness_score"] > rough["smoothness_score"]
    assert smooth["violation_count"] < rough["violation_count"] > 0
    assert not rough["is_valid"] and len(rough["layers"]) == 28
    groups = groups_of(aq, tmp_path / "rough")
    for layer in rough["layers"]:
        scales = np.float32(groups[layer["name"]]["scales_8"]).astype(float)
        zeros = np.array(groups[layer["name"]]["zero_points_8"], float)
        jumps = np.abs(np.diff(scales)) / scales[:-1]
        scores = 1 - np.minimum(1, (jumps + np.abs(np.diff(zeros)) / 255) / 2)
        assert np.allclose(layer["boundary_scores"], scores, atol=1e-6)
        assert [v["boundary_idx"] for v in layer["violations"]] == np.flatnonzero(jumps > 0.05).tolist()


def test_markov_of_a_model_without_groups(aq, tmp_path):
    done = subprocess.run([aq, "markov", dit.DIGITS], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "no time groups" in done.stderr


def test_inspect_statistics(aq):
    done = subprocess.run([aq, "inspect", "--calibration", ACTIVATIONS, "--calibration",
                           dit.REFERENCE / "hessians.safetensors", "--json"], capture_output=True,
                          text=True, timeout=100)
    layers = {x["name"]: x for x in json.loads(done.stdout)["layers"]}
    assert layers["proj_out_2"]["timesteps"] == list(range(0, 1000, 20))
    assert layers["transformer_blocks.0.attn1.to_v"]["second_moments"]
    assert not layers["pos_embed.proj"]["second_moments"] and layers["proj_out_2"]["rows"] is None


def damaged(path, name, change):
    tensors, data = dit.load(path), path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8:8 + size])
    begin, end = (8 + size + at for at in header[name]["data_offsets"])
    array = change(tensors[name].copy())
    path.write_bytes(data[:begin] + array.tobytes() + data[end:])


@pytest.mark.parametrize("part,at,value", [("starts", 0, 5), ("starts", 3, 10 ** 7), ("starts", 10, 0),
                                           ("scales", 2, np.nan), ("scales", 2, 0), ("scales", 2, -1),
                                           ("zeros", 0, 256), ("zeros", 15, 16), ("zeros", 0, -1)])
def test_damaged_groups(aq, tmp_path, part, at, value):
    quantize(aq, tmp_path / "out", "--calibration", ACTIVATIONS)
    path = tmp_path / "out/transformer/diffusion_pytorch_model.safetensors"

    def change(array):
        array.ravel()[at] = value
        return array
    damaged(path, f"transformer_blocks.0.attn1.to_q.weight.aq_act_{part}", change)
    done = subprocess.run([aq, "inspect", tmp_path / "out"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "time groups" in done.stderr
