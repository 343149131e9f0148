"""Methods through the whole tool, on the bundled model with the statistics of its reference run: which
is chosen and why, what it does to the outputs of the layers, judged in float64; the same bytes
whatever the machine does; statistics that are not there or not right."""
import functools
import json
import subprocess

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import aq_reader
import dit

ACTIVATIONS = dit.REFERENCE / "activations.safetensors"
HESSIANS = dit.REFERENCE / "hessians.safetensors"
BOTH = ("--calibration", ACTIVATIONS, "--calibration", HESSIANS)
FILE = "transformer/diffusion_pytorch_model.safetensors"


def run(aq, out, *words, status=0):
    done = subprocess.run([aq, "quantize", dit.DIGITS, out, "--json", "--min-accuracy", "0", "--set",
                           "enable_spatial=false", *map(str, words)], capture_output=True, text=True, timeout=250)
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout) if status == 0 else done.stderr


def report(out):
    entries = json.loads((out / "arrowquant_report.json").read_text())["tensors"]
    return {entry["name"]: entry for entry in entries if entry["bits"] < 16}


@functools.cache
def originals():
    tensors = dit.load(dit.DIGITS / FILE)
    return {name: value.astype(np.float64) for name, value in tensors.items()
            if name.endswith(".weight") and value.ndim == 2}


@functools.cache
def reference_moments():
    """XᵀX / n of every linear layer's input; to_k and to_v share that of to_q."""
    stored = {name: value.astype(np.float64) for name, value in dit.load(HESSIANS).items()}
    return {name: stored[name[:-7].replace("to_k", "to_q").replace("to_v", "to_q")]
            for name in originals() if "class_embedder" not in name}


@functools.cache
def fresh_moments():
    """Of a run from a noise that the calibration never saw."""
    model = dit.Model()
    noise, classes = dit.fresh_noise(7, 40)
    found = dit.second_moments(dit.collect(model, noise, classes, 25))
    return {name: found[name[:-7]] for name in reference_moments()}


def output_errors(out, moments):
    """{layer: ‖(W − Ŵ)X‖² / ‖WX‖²}"""
    quantized, _ = aq_reader.read(out / FILE)
    errors = {}
    for name, h in moments.items():
        w = originals()[name]
        e = w - quantized[name].astype(np.float64)
        errors[name] = np.sum(e @ h * e) / np.sum(w @ h * w)
    return errors


def mean_error(out, moments):
    return np.mean(list(output_errors(out, moments).values()))


@pytest.fixture(scope="module")
def outputs(aq, tmp_path_factory):
    """output(bits, group, kind): the whole model, sensitive layers too, quantized in one way."""
    kinds = {"plain": (), "weighted": ("--method", "ptq", *BOTH), "gptq": ("--method", "gptq", *BOTH)}
    top = tmp_path_factory.mktemp("methods")

    @functools.cache
    def output(bits, group, kind):
        out = top / f"{kind}-{bits}-{group}"
        run(aq, out, "--bits", bits, "--group-size", group, "--quantize-sensitive", *kinds[kind])
        return out
    return output


@pytest.mark.parametrize("bits, group, feedback, weights", [(4, 128, 0.884, 0.15), (2, 64, 0.875, 0.25)])
def test_output_error_falls(outputs, bits, group, feedback, weights):
    plain, weighted, gptq = (mean_error(outputs(bits, group, kind), reference_moments())
                             for kind in ("plain", "weighted", "gptq"))
    assert gptq <= (1 - feedback) * plain
    assert weighted <= (1 - weights) * plain


@pytest.mark.parametrize("bits, group", [(4, 128), (2, 64)])
def test_output_error_falls_on_unseen_inputs(outputs, bits, group):
    plain, gptq = (mean_error(outputs(bits, group, kind), fresh_moments())
                   for kind in ("plain", "gptq"))
    assert gptq <= 0.25 * plain


def test_report_tells_the_output_error(outputs):
    out = outputs(4, 128, "gptq")
    expected, entries = output_errors(out, reference_moments()), report(out)
    for name, error in expected.items():
        assert entries[name]["method"] == "gptq" and entries[name]["method_reason"] == "asked for"
        assert entries[name]["output_error"] == pytest.approx(error, rel=1e-3)
    native = json.loads(aq_reader.read_container(out / FILE)[1]["arrowquant"])["tensors"]
    assert {native[name]["method"] for name in expected} == {"gptq"}


@pytest.mark.parametrize("layer", ["transformer_blocks.0.attn1.to_k", "transformer_blocks.1.ff.net.2"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_run_gives_what_the_function_gives(aq, tool, tmp_path, fast, layer):
    """Factors and Hessians are shared by layers of one input; codes and parameters know nothing of that."""
    run(aq, tmp_path / "q", "--bits", 2, "--group-size", 64, "--quantize-sensitive", "--method", "gptq",
        *BOTH, *(["--fast"] if fast else []))
    name = f"{layer}.weight"
    tensors, _ = aq_reader.read_container(tmp_path / "q" / FILE)
    weights = originals()[name].astype("=f4")
    (tmp_path / "weights").write_bytes(weights.tobytes())
    (tmp_path / "hessian").write_bytes(reference_moments()[name].astype("=f4").tobytes())
    subprocess.run([tool("quant"), "affine-fast" if fast else "affine", "F16", "2", "64",
                    *map(str, weights.shape), "F32", tmp_path / "weights",
                    f"GPTQ:{tmp_path / 'hessian'}", tmp_path / "out"], check=True, timeout=60)
    expected = b"".join(tensors[f"{name}.{part}"][1].tobytes() for part in ("aq_codes", "aq_params"))
    assert (tmp_path / "out").read_bytes().startswith(expected)


def reasons(out):
    found = {}
    for entry in report(out).values():
        key = entry["method"], entry["method_reason"]
        found[key] = found.get(key, 0) + 1
    return found


def test_auto_goes_by_statistics_at_any_bits(aq, tmp_path):
    weighted = ("ptq", "columns weighted by their mean squares")
    feedback = ("gptq", "second moments are known")
    trellis, turned = (("trellis", f"second moments are known, it errs less than GPTQ{more}")
                       for more in ("", ", rotated"))
    for number, (words, expected) in enumerate([
            (("--bits", 4), {("ptq", "no statistics"): 28}),
            (("--bits", 4, *BOTH), {feedback: 28}),
            (("--bits", 2, "--calibration", HESSIANS), {trellis: 12, turned: 16}),
            (("--bits", 2, "--symmetric", "--parameter-bits", 8, "--calibration", HESSIANS), # 4 would grow
             {feedback: 4, trellis: 10, turned: 14}),
            (("--bits", 4, "--calibration", ACTIVATIONS), {weighted: 28}),
            (("--bits", 8, *BOTH), {feedback: 28}),
            (("--bits", 8, "--calibration", ACTIVATIONS), {weighted: 28}),
            (("--bits", 4, "--max-memory", "2", "--threads", "1", *BOTH),
             {feedback: 24, weighted: 4}),
            (("--bits", 4, "--layer-bits", "*.attn1.*=8", *BOTH), {feedback: 28})]):
        run(aq, tmp_path / str(number), *words)
        assert reasons(tmp_path / str(number)) == expected, words


def test_weighting_needs_the_mean_squares_only(aq, outputs, tmp_path):
    """Second moments alone give the same weights, but for the F16 in which the others are stored."""
    run(aq, tmp_path / "out", "--bits", 4, "--group-size", 128, "--quantize-sensitive", "--method",
        "ptq", "--calibration", HESSIANS)
    assert mean_error(tmp_path / "out", reference_moments()) == pytest.approx(
        mean_error(outputs(4, 128, "weighted"), reference_moments()), rel=0.02)


def test_the_same_bytes_whatever_the_machine_does(aq, tmp_path):
    words = ("--bits", 2, "--group-size", 32, "--parameter-bits", 8, *BOTH)
    run(aq, tmp_path / "first", *words)
    listed = json.loads(subprocess.run([aq, "inspect", "--cpu", "--json"], capture_output=True,
                                       text=True, timeout=60, check=True).stdout)["cpu"]["usable"]
    variants = [("--isa", isa) for isa in listed] + [("--threads", 1), ("--threads", 3), ("--streaming",)]
    for number, variant in enumerate(variants):
        out = tmp_path / str(number)
        run(aq, out, *words, *variant)
        for name in (FILE, "arrowquant_report.json"):
            assert (out / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), variant


def test_formats_of_others(aq, outputs, tmp_path):
    """Codes with zero points, as vLLM loads them, are chosen with feedback too."""
    run(aq, tmp_path / "q", "--bits", 4, "--group-size", 128, "--quantize-sensitive", "--method", "gptq",
        "--format", "compressed-tensors", *BOTH)
    subprocess.run([aq, "dequantize", tmp_path / "q", tmp_path / "plain", "--quiet"], check=True,
                   timeout=100)
    back = dit.load(tmp_path / "plain" / FILE)
    for name, entry in report(tmp_path / "q").items():
        if name not in reference_moments():
            continue
        w, h = originals()[name], reference_moments()[name]
        e = w - back[name].astype(np.float64)
        assert entry["method"] == "gptq"
        error = np.sum(e @ h * e) / np.sum(w @ h * w)
        assert entry["output_error"] == pytest.approx(error, rel=1e-3)
        plain = output_errors(outputs(4, 128, "plain"), {name: h})[name]
        assert error < 0.6 * plain


def changed(path, change):
    tensors = load_file(HESSIANS)
    change(tensors)
    save_file(tensors, path)
    return path


def test_layers_that_are_missing(aq, tmp_path):
    def half(tensors):
        for name in list(tensors):
            if name.startswith(("transformer_blocks.2", "transformer_blocks.3")):
                del tensors[name]
    out = tmp_path / "out"
    result = run(aq, out, "--bits", 4, "--method", "gptq", "--calibration",
                 changed(tmp_path / "half.safetensors", half))
    assert reasons(out) == {("gptq", "asked for"): 14, ("ptq", "no statistics"): 14}
    assert any("14 quantized layers have no statistics" in note for note in result["notes"])


@pytest.mark.parametrize("method", ["gptq", "auto"])
def test_moments_that_are_not_numbers(aq, tmp_path, method):
    def spoil(tensors):
        tensors["transformer_blocks.1.attn1.to_q"][3, 5] = np.nan
    error = run(aq, tmp_path / "out", "--method", method, "--calibration",
                changed(tmp_path / "nan.safetensors", spoil), status=1)
    assert "transformer_blocks.1.attn1.to_q" in error and "nan.safetensors" in error
    assert not (tmp_path / "out").exists()


def test_moments_of_nothing_real(aq, tmp_path):
    """Not positive definite by far: asked for it is an error, auto goes on without."""
    def spoil(tensors):
        h = tensors["transformer_blocks.1.ff.net.0.proj"]
        h[:] = -1
        np.fill_diagonal(h, 1)
    path = changed(tmp_path / "wild.safetensors", spoil)
    error = run(aq, tmp_path / "no", "--method", "gptq", "--calibration", path, status=1)
    assert "transformer_blocks.1.ff.net.0.proj" in error and "no damping" in error
    run(aq, tmp_path / "out", "--calibration", path)
    assert reasons(tmp_path / "out") == {
        ("gptq", "second moments are known"): 27,
        ("ptq", "second moments are not positive definite"): 1}


def test_one_sample_and_dead_channels(aq, tmp_path):
    def poor(tensors):
        rng = np.random.default_rng(1)
        for name, h in tensors.items():
            x = rng.standard_normal(len(h)).astype(np.float32)
            x[::5] = 0
            h[:] = np.outer(x, x)
    out = tmp_path / "out"
    run(aq, out, "--bits", 4, "--calibration", changed(tmp_path / "poor.safetensors", poor))
    quantized, _ = aq_reader.read(out / FILE)
    for name, w in quantized.items():
        assert np.linalg.norm(w - originals()[name]) < 0.4 * np.linalg.norm(originals()[name])
    assert all(entry["output_error"] < 1e-3 for entry in report(out).values())


def test_asked_for_in_vain(aq, tmp_path):
    assert "there is no calibration" in run(aq, tmp_path / "out", "--method", "gptq", status=1)
    assert "none for any layer" in run(aq, tmp_path / "out", "--method", "gptq", "--calibration",
                                       ACTIVATIONS, status=1)
    assert "max_memory_limit_mb allows 1" in run(aq, tmp_path / "out", "--method", "gptq", *BOTH,
                                                 "--max-memory", 1, status=1)
    assert "expected auto, ptq, r2q, gptq or trellis" in run(aq, tmp_path / "out", "--method", "magic", status=2)
