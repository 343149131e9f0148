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
