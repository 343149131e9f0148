"""Bits by layer under a budget, on the bundled model: better at the same size than uniform bits and than
a rule of names and depth; within the budget; the same plan however it is made; gates and errors."""
import json
import re
import subprocess

import numpy as np
import pytest

import aq_reader
import dit
from test_methods import BOTH, FILE, HESSIANS, output_errors, reference_moments, run

EVERYTHING = ("--group-size", 64, "--quantize-sensitive")

# What many tools do: by names (embeddings, first and last projections 8 bits) and by depth (first and
# last block 4 bits), the rest 2.
NAMES_AND_DEPTH = [f"--layer-bits={pattern}" for pattern in (
    "*emb*=8", "proj_out_*=8", "*transformer_blocks.0.*=4", "*transformer_blocks.3.*=4", "*=2")]


def entries(out):
    return {entry["name"]: entry for entry in
            json.loads((out / "arrowquant_report.json").read_text())["tensors"]
            if len(entry["shape"]) == 2}


def stored_bits(out):
    """Mean over all matrices, kept ones at what they take."""
    found = entries(out).values()
    return 8 * sum(e["output_bytes"] for e in found) / sum(np.prod(e["shape"]) for e in found)


def total_error(out, moments):
    """Sum over all linear layers; a kept one has none."""
    quantized, _ = aq_reader.read(out / FILE)
    return sum(output_errors(out, {name: h for name, h in moments.items() if name in quantized}).values())


def test_better_than_uniform_bits(aq, tmp_path):
    run(aq, tmp_path / "uniform", "--bits", 2, *EVERYTHING, *BOTH)
    run(aq, tmp_path / "mixed", "--target-bits", 3.0, *EVERYTHING, *BOTH)
    assert stored_bits(tmp_path / "mixed") <= 3.0 + 1e-9
    uniform, mixed = (total_error(tmp_path / name, reference_moments()) for name in ("uniform", "mixed"))
    assert mixed < 0.35 * uniform


def test_better_than_names_and_depth_at_the_same_size(aq, tmp_path):
    run(aq, tmp_path / "rule", *NAMES_AND_DEPTH, *EVERYTHING, *BOTH)
    size = stored_bits(tmp_path / "rule")
    run(aq, tmp_path / "mixed", "--target-bits", f"{size:.6f}", *EVERYTHING, *BOTH)
    assert stored_bits(tmp_path / "mixed") <= size + 1e-5
    rule, mixed = (total_error(tmp_path / name, reference_moments()) for name in ("rule", "mixed"))
    assert mixed < 0.8 * rule


def noted(result):
    note, = (note for note in result["notes"] if note.startswith("bits chosen"))
    return [float(x) for x in re.findall(r"(?<![\d.])\d+\.\d+|(?<![\d.])\d+(?![\d.])", note)]


def test_what_is_said_is_so(aq, tmp_path):
    """The note's mean bits and sum of errors; each layer's own error among those it was chosen by."""
    result = run(aq, tmp_path / "out", "--target-bits", 3.5, "--group-size", 64, *BOTH)
    bits, layers, error, bound = noted(result)
    chosen = {name: e for name, e in entries(tmp_path / "out").items()
              if e["reason"] == "bits chosen for the size"}
    assert layers == len(chosen) == 28 and bound <= error
    weights = sum(np.prod(e["shape"]) for e in chosen.values())
    assert 8 * sum(e["output_bytes"] for e in chosen.values()) / weights == pytest.approx(bits, abs=1e-3)
    assert bits <= 3.5
    moments = {name: reference_moments()[name] for name, e in chosen.items() if e["bits"] < 16}
    measured = output_errors(tmp_path / "out", moments)
    assert sum(measured.values()) == pytest.approx(error, rel=1e-3, abs=2e-6)
    for name, e in chosen.items():
        assert e["detail"].startswith("output error at 2, 4, 8 bits: ") and "; entropy 0." in e["detail"]
        if e["bits"] < 16:
            listed = re.findall(r"[\d.e-]+(?=[,;])", e["detail"].split(": ")[1])
            said = float(listed[{2: 0, 4: 1, 8: 2}[e["bits"]]])
            assert measured[name] == pytest.approx(said, rel=6e-3)


def test_entropy_is_that_of_256_cells(aq, tmp_path):
    run(aq, tmp_path / "out", "--target-bits", 3, *EVERYTHING)
    tensors = dit.load(dit.DIGITS / FILE)
    for name, e in entries(tmp_path / "out").items():
        if e["reason"] == "bits chosen for the size":
            cells = np.histogram(tensors[name].astype(np.float64), 256)[0]
            share = cells[cells > 0] / cells.sum()
            expected = -np.sum(share * np.log2(share)) / 8
            assert float(e["detail"].rpartition(" ")[2]) == pytest.approx(expected, abs=2e-3)


def test_without_statistics_the_weights_count(aq, tmp_path):
    run(aq, tmp_path / "out", "--target-bits", 3, *EVERYTHING)
    for e in entries(tmp_path / "out").values():
        if e["reason"] == "bits chosen for the size":
            assert e["detail"].startswith("weight error")
    assert stored_bits(tmp_path / "out") <= 3.0 + 1e-9


@pytest.mark.parametrize("words", [("--target-size-mb", 1), ("--target-size-mb", 2),
                                   ("--target-size-mb", 1, "--target-bits", 2.7),
                                   ("--target-bits", 2.7)])
def test_budgets_are_kept(aq, tmp_path, words):
    """In MB of the output, in bits a weight, and the smaller of both."""
    result = run(aq, tmp_path / "out", *words, "--group-size", 64, "--calibration", HESSIANS)
    if "--target-size-mb" in words:
        assert result["model_size_mb"] <= words[1]
        assert result["model_size_mb"] > 0.9 * words[1] or len(words) > 2
    if "--target-bits" in words:
        assert noted(result)[0] <= 2.7


def test_layer_bits_are_left_alone(aq, tmp_path):
    run(aq, tmp_path / "out", "--target-bits", 2.6, "--group-size", 64, "--layer-bits",
        "*.attn1.to_q.weight=8", "--keep", "*.ff.*", *BOTH)
    found = entries(tmp_path / "out")
    assert all(e["bits"] == 8 for name, e in found.items() if "to_q" in name)
    assert all(e["bits"] == 16 for name, e in found.items() if ".ff." in name)
    assert sum(e["reason"] == "bits chosen for the size" for e in found.values()) == 16


def test_gates_forbid_bits(aq, tmp_path):
    """Bits at which a layer misses a gate are no choice: nothing is raised afterwards."""
    words = ("--group-size", 64, "--min-sqnr-db", 15, *BOTH)
    result = run(aq, tmp_path / "out", "--target-bits", 6, *words)
    assert result["layers_raised"] == 0
    assert all(e["bits"] >= 4 for e in entries(tmp_path / "out").values())
    assert "target_bits" in run(aq, tmp_path / "no", "--target-bits", 3, *words, status=1)


def test_too_small(aq, tmp_path):
    error = run(aq, tmp_path / "out", "--target-bits", 2, "--group-size", 64, status=1)
    assert "target_bits: the budget is " in error and "the smallest choice takes" in error
    assert not (tmp_path / "out").exists()


def test_a_plan_is_a_plan(aq, tmp_path):
    """A dry run shows the bits that the run has; threads, kernels and streaming change nothing."""
    words = ("--target-bits", 3, "--group-size", 64, *map(str, BOTH))
    done = subprocess.run([aq, "quantize", dit.DIGITS, "--dry-run", "--json", "--set", "enable_spatial=false",
                           *map(str, words)],
                          capture_output=True, text=True, timeout=100, check=True)
    plan = {t["name"]: t for t in json.loads(done.stdout)["tensors"]}
    run(aq, tmp_path / "first", *words, "--min-accuracy", 0.85)
    for name, entry in entries(tmp_path / "first").items():
        assert (plan[name]["bits"], plan[name]["detail"], plan[name]["output_bytes"]) == (
            entry["bits"], entry["detail"], entry["output_bytes"])
    for number, variant in enumerate([("--isa", "scalar"), ("--threads", 1), ("--streaming",)]):
        out = tmp_path / str(number)
        run(aq, out, *words, "--min-accuracy", 0.85, *variant)
        for name in (FILE, "arrowquant_report.json"):
            assert (out / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), variant
