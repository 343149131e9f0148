"""Equalization in runs: scales for the inputs of layers, searched for, chosen by the measured error of
the output, stored beside the weight. Judged in float64 against NumPy; the weights that come back are
the original ones; the same bytes whatever the machine does; what is refused."""
import functools
import json
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import aq_reader
import dit
from tool_models import files_of, sharded_folder

ACTIVATIONS = dit.REFERENCE / "activations.safetensors"
BOTH = ("--calibration", ACTIVATIONS, "--calibration", dit.REFERENCE / "hessians.safetensors")
FILE = "transformer/diffusion_pytorch_model.safetensors"
LAYER = "transformer_blocks.1.attn1.to_q.weight"


def run(aq, out, *words, status=0, model=dit.DIGITS):
    done = subprocess.run([aq, "quantize", model, out, "--json", "--quiet", "--min-accuracy", "0",
                           "--group-size", "64", *map(str, words)], capture_output=True, text=True,
                          timeout=250)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)["notes"] if status == 0 else done.stderr


def tool(aq, *words, status=0):
    done = subprocess.run([str(aq), *map(str, words)], capture_output=True, text=True, timeout=100)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


@pytest.fixture(scope="module")
def output(aq, tmp_path_factory):
    top = tmp_path_factory.mktemp("equalized")

    @functools.cache
    def made(*words):
        out = top / "-".join(str(word).strip("-") for word in words)
        run(aq, out, *words, *BOTH)
        return out
    return made


def report(out):
    entries = json.loads((out / "arrowquant_report.json").read_text())["tensors"]
    return {entry["name"]: entry for entry in entries if entry["bits"] < 16}


def entries_of(path):
    tensors, metadata = aq_reader.read_container(path)
    return tensors, json.loads(metadata["arrowquant"])["tensors"]


@functools.cache
def originals():
    return {name: value.astype(np.float64) for name, value in dit.load(dit.DIGITS / FILE).items()}


def moments(name):
    stored = dit.load(dit.REFERENCE / "hessians.safetensors")
    return stored[name[:-7].replace("to_k", "to_q").replace("to_v", "to_q")].astype(np.float64)


@pytest.mark.parametrize("bits", [4, 8])
def test_figures_in_float64(output, bits):
    """Cosine, SQNR (both from sums in F32) and output error of the report are those of the weights that a reader gets, against
    the original ones; scaling the input does not change a product beyond F32's rounding."""
    out = output("--bits", bits)
    tensors, entries = entries_of(out / FILE)
    equalized = [name for name, entry in entries.items() if "input" in entry]
    assert len(equalized) >= (25 if bits == 8 else 8)
    rng = np.random.default_rng(bits)
    for name in equalized:
        w, got = originals()[name], report(out)[name]
        scales = tensors[name + ".aq_input_scales"][1].astype(np.float64)
        back = aq_reader.dequantize(entries[name], tensors, name).astype(np.float64)
        error, h = w - back, moments(name)
        assert got["sqnr_db"] == pytest.approx(10 * np.log10(np.sum(w * w) / np.sum(error * error)),
                                               abs=1e-6)
        assert got["cosine_similarity"] == pytest.approx(
            np.sum(w * back) / np.sqrt(np.sum(w * w) * np.sum(back * back)), abs=1e-7)
        assert got["output_error"] == pytest.approx(np.sum(error @ h * error) / np.sum(w @ h * w),
                                                    rel=2e-3)
        assert got["equalization"]["error"] < got["equalization"]["error_without"]
        x = rng.standard_normal(w.shape[1])
        y = aq_reader.stored(entries[name], tensors, name).astype(np.float64) @ (scales * x)
        assert np.abs(y - back @ x).max() <= 1e-7 * (np.abs(back) @ np.abs(x)).max()
        folded = w / scales  # in float64 the fold is exact
        assert np.allclose(folded @ (scales * x), w @ x, rtol=0,
                           atol=1e-14 * (np.abs(w) @ np.abs(x)).max())
        assert np.exp(np.mean(np.log(scales))) == pytest.approx(1, rel=1e-5)


def limits(name, scales):
    """Least and greatest equalized input at each observed timestep, from the file's figures."""
    stored, layer = load_file(ACTIVATIONS), name[:-7]
    high = stored[f"{layer}.act_absmax"].astype(np.float64)
    low = np.maximum(-high, stored[f"{layer}.act_min"].astype(np.float64)[:, None])
    high = np.minimum(high, stored[f"{layer}.act_max"].astype(np.float64)[:, None])
    return (low * scales).min(1), (high * scales).max(1)


def test_time_groups_are_of_the_equalized_input(aq, output):
    """Their integers cover what the figures of the channels allow, scaled."""
    out = output("--bits", 8)
    tensors, entries = entries_of(out / FILE)
    shown = {x["name"]: x for x in json.loads(tool(aq, "inspect", out, "--json", "--verify"))["tensors"]}
    for name in (name for name, entry in entries.items() if "input" in entry):
        assert shown[name]["equalized"]
        low, high = limits(name, tensors[name + ".aq_input_scales"][1].astype(np.float64))
        groups = shown[name]["time_groups"]
        for g, start in enumerate(groups["starts"]):
            inside = slice(start // 20, start // 20 + 5)
            span = max(high[inside].max(), 0) - min(low[inside].min(), 0)
            assert groups["scales_8"][g] == pytest.approx(span / 255, rel=1e-6)


def test_static_inputs_gain(output):
    """On inputs from a noise that the calibration never saw: weights and static 8-bit inputs together
    lose less than half of what they lose without equalization."""
    plain = output("--bits", 8, "--set", "enable_spatial=false")
    model = dit.Model()
    noise, classes = dit.fresh_noise(5, 8)
    inputs = dit.collect(model, noise, classes, 10)
    means = {}
    for out in (plain, output("--bits", 8)):
        tensors, entries = entries_of(out / FILE)
        found = []
        for name in (name for name in entries if name + ".aq_act_starts" in tensors):
            starts = tensors[name + ".aq_act_starts"][1][:-1]
            scales, zeros = tensors[name + ".aq_act_scales"][1][0], tensors[name + ".aq_act_zeros"][1][0]
            s = tensors[name + ".aq_input_scales"][1] if "input" in entries[name] else np.float32(1)
            w = aq_reader.stored(entries[name], tensors, name).astype(np.float64)
            error = energy = 0.0
            for step, x in enumerate(inputs[name[:-7]]):
                g = np.searchsorted(starts, step * 100, "right") - 1
                q = np.clip(np.rint(x * s / scales[g]) + zeros[g], 0, 255) - zeros[g]
                y = x.astype(np.float64) @ originals()[name].T
                error += np.square((q * scales[g]).astype(np.float64) @ w.T - y).sum()
                energy += np.square(y).sum()
            found.append(error / energy)
        means[out] = np.mean(found)
    assert len(found) == 28 and means[output("--bits", 8)] < 0.5 * means[plain]


def test_a_choice_that_never_loses(output):
    """At 2 and 4 bits the error that decides is the weights' own but for little: a layer is left alone
    where scales bring nothing, and the outputs are not worse on the whole."""
    for bits in (2, 4):
        found, plain = (report(output("--bits", bits, "--set", f"enable_spatial={word}"))
                        for word in ("true", "false"))
        with_, without = (np.mean([entry["output_error"] for entry in side.values()])
                          for side in (found, plain))
        assert 0 < sum("equalization" in entry for entry in found.values()) < len(found)
        assert with_ < 1.01 * without
        assert not any("equalization" in entry for entry in plain.values())


def test_what_comes_back(aq, output, tmp_path):
    out = output("--bits", 4)
    tensors, entries = entries_of(out / FILE)
    tool(aq, "validate", dit.DIGITS, out, "--min-accuracy", "0.9")
    layers = json.loads(tool(aq, "validate", dit.DIGITS, out, "--min-accuracy", "0", "--json",
                             "--layers"))["layers"]
    for layer in layers:
        assert layer["sqnr_db"] == pytest.approx(report(out)[layer["name"]]["sqnr_db"], abs=1e-9)
    tool(aq, "dequantize", out, tmp_path / "plain", "--dtype", "f32", "--quiet")
    plain = load_file(tmp_path / "plain" / FILE)
    assert set(plain) == set(originals())
    for name, entry in entries.items():
        assert np.array_equal(plain[name], aq_reader.dequantize(entry, tensors, name)), name


def test_the_same_bytes_whatever_the_machine_does(aq, output, tmp_path):
    out = output("--bits", 4)
    for number, (words, env) in enumerate([(("--threads", 1), {"ARROW_QUANT_ISA": "scalar"}),
                                           (("--threads", 3, "--streaming"), {})]):
        done = subprocess.run([aq, "quantize", dit.DIGITS, tmp_path / str(number), "--quiet",
                               "--min-accuracy", "0", "--group-size", "64", "--bits", "4",
                               *map(str, words), *map(str, BOTH)], env={**os.environ, **env},
                              capture_output=True, text=True, timeout=250)
        assert done.returncode == 0, done.stderr
        assert files_of(tmp_path / str(number)) == files_of(out)


def sharded(folder):
    """Four linear layers of the bundled model in as many files, and their statistics."""
    names = [f"transformer_blocks.{i}.ff.net.0.proj.weight" for i in range(4)]
    model = dit.load(dit.DIGITS / FILE)
    return sharded_folder(folder, {name: model[name] for name in names}, shards=4)


def test_resumed_and_shared_runs(aq, tmp_path):
    """What a killed run had finished is taken up: plan and scales are found again."""
    model, out = tmp_path / "model", tmp_path / "out"
    sharded(model)
    run(aq, tmp_path / "whole", "--bits", 8, *BOTH, model=model)
    expected = files_of(tmp_path / "whole")
    command = [aq, "quantize", model, out, "--quiet", "--min-accuracy", "0", "--group-size", "64",
               "--bits", "8", *map(str, BOTH)]
    for wait in (0.05, 0.1, 0.2, 0.3, 0.4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if out.exists():
            shutil.rmtree(out)
        notes = run(aq, out, "--bits", 8, "--resume", *BOTH, model=model)
        assert files_of(out) == expected, notes
        shutil.rmtree(out)


def test_budget(aq, tmp_path):
    notes = run(aq, tmp_path / "out", "--target-bits", 4, *BOTH)
    assert any("bits chosen by measured errors" in note for note in notes)
    assert any("equalization: the inputs of" in note for note in notes)
    entries = report(tmp_path / "out").values()
    stored = 8 * sum(e["output_bytes"] for e in entries) / sum(int(np.prod(e["shape"])) for e in entries)
    assert stored <= 4 and len({e["bits"] for e in entries}) > 1
    tool(aq, "inspect", tmp_path / "out", "--verify")


def test_expected_errors_decide_without_second_moments(aq, tmp_path):
    run(aq, tmp_path / "out", "--bits", 8, "--calibration", ACTIVATIONS)
    found = report(tmp_path / "out")
    chosen = [e["equalization"] for e in found.values() if "equalization" in e]
    assert len(chosen) >= 25 and all(e["output_error"] is None for e in found.values())
    assert np.exp(np.mean([np.log(e["error_without"] / e["error"]) for e in chosen])) > 1.5


def test_dead_and_missing_channels(aq, tmp_path):
    """A channel that is always 0, or has no weights, keeps its scale of 1."""
    model, stored = dit.load(dit.DIGITS / FILE), dict(load_file(ACTIVATIONS))
    name = "transformer_blocks.0.ff.net.0.proj"
    weight = model[name + ".weight"].copy()
    weight[:, 9] = 0
    sharded_folder(tmp_path / "model", {name + ".weight": weight}, shards=1)
    kept = {key: value.copy() for key, value in stored.items()
            if key.startswith(name + ".") or key == "timesteps"}
    for figure in ("absmax", "sqmean"):
        kept[f"{name}.act_{figure}"][:, 3] = 0
    save_file(kept, tmp_path / "dead.safetensors")
    run(aq, tmp_path / "out", "--bits", 8, "--calibration", tmp_path / "dead.safetensors",
        model=tmp_path / "model")
    path, = (tmp_path / "out").glob("*.safetensors")
    tensors, entries = entries_of(path)
    scales = tensors[name + ".weight.aq_input_scales"][1]
    assert scales[3] == 1 and scales[9] == 1 and len(np.unique(scales)) > 100
    assert entries[name + ".weight"]["sqnr_db"] > 35


def test_statistics_without_magnitudes(aq, tmp_path):
    """Second moments alone tell no largest magnitudes: nothing is equalized, and it is said."""
    notes = run(aq, tmp_path / "out", "--bits", 8, *BOTH[2:], "--set", "enable_time_aware=false")
    assert any("so none is equalized" in note for note in notes)
    assert not any("equalization" in entry for entry in report(tmp_path / "out").values())


# ---------------------------------------------------------------- formats

@pytest.mark.parametrize("words", [("--format", "gguf"), ("--format", "compressed-tensors", "--bits", 4),
                                   ("--format", "arrow")])
def test_formats_without_a_place_for_it(aq, tmp_path, words):
    """Asked for, it is an error; of a profile, it is left out and said."""
    error = run(aq, tmp_path / "out", *words, "--set", "enable_spatial=true", *BOTH, status=1)
    assert "enable_spatial" in error and "only the native format" in error
    notes = run(aq, tmp_path / "out", *words, *BOTH)
    assert any(note.startswith("equalization: the format has no place") for note in notes)


@pytest.mark.parametrize("form", ["gguf", "compressed-tensors", "arrow"])
def test_conversions_refuse(aq, output, tmp_path, form):
    out = output("--bits", 4, "--set", "enable_time_aware=false")
    assert "equalized" in tool(aq, "convert", out, tmp_path / f"out.{form}", "--format", form, status=1)


def test_native_stays_equalized(aq, output, tmp_path):
    """From native to native the scales of the inputs, and the static integers, go along."""
    source = output("--bits", 8)
    tool(aq, "convert", source, tmp_path / "out", "--format", "native")
    tool(aq, "inspect", tmp_path / "out", "--verify")
    (before, entries), (after, copied) = entries_of(source / FILE), entries_of(tmp_path / "out" / FILE)
    assert sum("input" in entry for entry in copied.values()) >= 25
    for name, entry in entries.items():
        assert entry.get("input") == copied[name].get("input"), name
        assert np.array_equal(aq_reader.dequantize(entry, before, name),
                              aq_reader.dequantize(copied[name], after, name)), name
    for name, (_, value) in before.items():
        if name.endswith((".aq_input_scales", ".aq_act_scales")):
            assert np.array_equal(value, after[name][1]), name


def changed(source, folder, change):
    """A copy of an output whose header and data change(header, data) may alter."""
    shutil.copytree(source, folder)
    path = folder / FILE
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8:8 + size]), bytearray(raw[8 + size:])
    change(header, data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data))
    return folder


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_damaged_scales(aq, output, tmp_path, value):
    def spoil(header, data):
        begin = header[LAYER + ".aq_input_scales"]["data_offsets"][0] + 4 * 17
        data[begin:begin + 4] = np.float32(value).tobytes()
    out = changed(output("--bits", 8), tmp_path / "out", spoil)
    error = tool(aq, "inspect", out, status=1)
    assert "the scale of input 17 is not positive and finite" in error and LAYER in error


def test_damaged_metadata(aq, output, tmp_path):
    def edit(change):
        def with_entry(header, data):
            native = json.loads(header["__metadata__"]["arrowquant"])
            change(header, native["tensors"][LAYER])
            header["__metadata__"]["arrowquant"] = json.dumps(native)
        return with_entry
    cases = [(lambda header, entry: entry.update(input="mirrored"), "\"mirrored\""),
             (lambda header, entry: entry.update(input=7), "a string was expected"),
             (lambda header, entry: header.update({"x": header.pop(LAYER + ".aq_input_scales")}),
              "aq_input_scales is missing"),
             (lambda header, entry: header[LAYER + ".aq_input_scales"].update(shape=[64, 2]),
              "expected " + LAYER + ".aq_input_scales")]
    for number, (change, words) in enumerate(cases):
        out = changed(output("--bits", 8), tmp_path / str(number), edit(change))
        assert words in tool(aq, "inspect", out, status=1)
