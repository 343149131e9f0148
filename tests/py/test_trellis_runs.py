"""`method: trellis` through the whole tool, on the bundled model: what is stored against another reader, with
and without second moments; the same bytes whatever the machine does; what it is refused for."""
import json
import re
import subprocess

import numpy as np
import pytest
from safetensors.numpy import save_file

import aq_reader
import dit
from conftest import LIBS, call
from test_methods import BOTH, FILE, originals, output_errors, reasons, reference_moments, report, run


def entries(out):
    return json.loads(aq_reader.read_container(out / FILE)[1]["arrowquant"])["tensors"]


@pytest.fixture(scope="module")
def made(aq, tmp_path_factory):
    """Two bits of 256 states without and with statistics."""
    top = tmp_path_factory.mktemp("trellis")
    words = ("--bits", 2, "--method", "trellis", "--trellis-states", 256)
    run(aq, top / "free", *words, "--layer-bits", "*.to_v.weight=8")
    run(aq, top / "calibrated", *words, *BOTH)
    return top


def test_another_reader_sees_the_same(aq, made, tmp_path):
    for name in ("free", "calibrated"):
        out = tmp_path / name
        subprocess.run([aq, "dequantize", made / name, out, "--quiet"], check=True, timeout=100)
        plain, (read, _) = dit.load(out / FILE), aq_reader.read(made / name / FILE)
        for tensor, value in read.items():
            size = np.sqrt(np.mean(value**2))
            assert np.abs(plain[tensor] - value).max() < 3e-6 * size, tensor


def test_what_is_stored(made):
    stored = entries(made / "free")
    codes = {entry["code"] for name, entry in stored.items() if "to_v" not in name}
    assert codes == {"trellis"} and {entry["code"] for name, entry in stored.items()
                                     if "to_v" in name} == {"affine"}
    for name, entry in stored.items():
        if entry["code"] == "trellis":
            assert (entry["bits"], entry["states"], entry["rotation"]) == (2, 256, 1), name
    assert reasons(made / "free") == {("trellis", "no statistics"): 24, ("ptq", "no statistics"): 4}
    assert {why[0] for why in reasons(made / "calibrated")} == {"trellis"}
    assert [json.loads((made / name / "transformer/config.json").read_text())["quantization_config"]["code"]
            for name in ("free", "calibrated")] == ["mixed", "trellis"]


def test_inspect_shows_it(aq, made):
    """States and rotation, as text and as JSON."""
    text, shown = (subprocess.run([aq, "inspect", made / "free", *words], check=True, timeout=100,
                                  capture_output=True, text=True).stdout for words in ([], ["--json"]))
    stored = entries(made / "free")
    for tensor in json.loads(shown)["tensors"]:
        entry = stored.get(tensor["name"], {})
        assert tensor.get("states") == entry.get("states") and tensor.get("rotation") == entry.get("rotation")
    assert text.count("trellis 256, rotated") == 24


def test_quality_is_as_recorded(aq, made):
    read, _ = aq_reader.read(made / "free" / FILE)
    for name, entry in entries(made / "free").items():
        w = originals()[name]
        sqnr = 10 * np.log10(np.sum(w**2) / np.sum((w - read[name]) ** 2))
        assert entry["sqnr_db"] == pytest.approx(sqnr, abs=0.01), name
        assert entry["code"] != "trellis" or sqnr > 10.2, name
    subprocess.run([aq, "validate", dit.DIGITS, made / "free", "--min-accuracy", "0", "--quiet"],
                   check=True, timeout=100)


def test_feedback_pays(made):
    """The output's errors fall by far, and the report has them."""
    moments = {name: h for name, h in reference_moments().items() if name in entries(made / "free")}
    free, calibrated = (output_errors(made / name, moments) for name in ("free", "calibrated"))
    names = [name for name in calibrated if "to_v" not in name]
    assert np.mean([calibrated[n] for n in names]) < 0.25 * np.mean([free[n] for n in names])
    for name, entry in report(made / "calibrated").items():
        assert entry["output_error"] == pytest.approx(calibrated[name], rel=0.02), name


def test_same_bytes(aq, made, tmp_path):
    """Threads, block sizes, ISAs."""
    expected = (made / "calibrated" / FILE).read_bytes()
    for number, words in enumerate((["--threads", 1, "--streaming"], ["--threads", 3, "--isa", "scalar"])):
        out = tmp_path / str(number)
        run(aq, out, "--bits", 2, "--method", "trellis", "--trellis-states", 256, *BOTH, *words)
        assert (out / FILE).read_bytes() == expected


def test_odd_shapes(aq, tmp_path):
    """Few rows, strips that end early, widths that are no power of two, convolutions; four bits."""
    rng = np.random.default_rng(5)
    shapes = {"a.weight": (3, 40), "b.weight": (257, 96), "c.weight": (300, 65), "d.weight": (64, 3, 3, 3),
              "e.weight": (513, 33)}
    save_file({name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()},
              tmp_path / "m.safetensors")
    subprocess.run([aq, "quantize", tmp_path / "m.safetensors", tmp_path / "q.safetensors", "--quiet", "--bits", "4",
                    "--method", "trellis", "--trellis-states", "256", "--min-accuracy", "0",
                    "--quantize-sensitive"], check=True, timeout=100)
    subprocess.run([aq, "dequantize", tmp_path / "q.safetensors", tmp_path / "p.safetensors", "--quiet"],
                   check=True, timeout=100)
    plain, (read, _) = dit.load(tmp_path / "p.safetensors"), aq_reader.read(tmp_path / "q.safetensors")
    assert set(read) == set(shapes)
    for name, value in read.items():
        assert np.abs(plain[name] - value).max() < 1e-5, name
    stored = json.loads(aq_reader.read_container(tmp_path / "q.safetensors")[1]["arrowquant"])["tensors"]
    assert {name for name, entry in stored.items() if entry["code"] == "affine"} == {"a.weight"} # few rows


def test_a_weight_that_is_no_number(aq, tmp_path):
    w = np.ones((300, 64), np.float32)
    w[299, 7] = np.nan
    save_file({"a.weight": w}, tmp_path / "m.safetensors")
    done = subprocess.run([aq, "quantize", tmp_path / "m.safetensors", tmp_path / "q.safetensors", "--method",
                           "trellis", "--bits", "2"], capture_output=True, text=True, timeout=100)
    assert done.returncode and "row 299, column 7" in done.stderr and "NaN" in done.stderr


@pytest.mark.parametrize("format", ["gguf", "compressed-tensors", "arrow"])
def test_other_formats_refuse_it(aq, tmp_path, format):
    error = run(aq, tmp_path / "q", "--method", "trellis", "--bits", 2, "--format", format, status=1)
    assert "method: trellis" in error and not (tmp_path / "q").exists()


def test_three_bits(aq, tmp_path):
    """In a config and under a budget; with no other method."""
    words = ("--method", "trellis", "--trellis-states", 256, "--fast")
    run(aq, tmp_path / "q", "--bits", 3, *words, "--layer-bits", "*.to_v.weight=4")
    read, _ = aq_reader.read(tmp_path / "q" / FILE)
    for name, entry in entries(tmp_path / "q").items():
        w = originals()[name]
        assert (entry["bits"], entry["code"]) == (4 if "to_v" in name else 3, "trellis"), name
        assert 10 * np.log10(np.sum(w**2) / np.sum((w - read[name]) ** 2)) > 15.8, name
    run(aq, tmp_path / "budget", "--target-bits", 3.2, *words)
    chosen = [entry for entry in report(tmp_path / "budget").values()]
    assert {3} < {entry["bits"] for entry in chosen} and chosen[0]["detail"].startswith("weight error at 2, 3, 4, 8 ")
    for method in ("auto", "gptq"):
        assert "3 bits need method: trellis" in run(aq, tmp_path / "no", "--bits", 3, "--method", method, status=1)
    assert 'for "*to_q*" need method: trellis' in run(aq, tmp_path / "no", "--layer-bits", "*to_q*=3", status=1)
    assert not (tmp_path / "no").exists()


def test_auto_takes_what_errs_less(aq, tmp_path):
    """Of GPTQ and a trellis at 2 bits: no layer's output errs more than by GPTQ, and none is larger."""
    for method in ("auto", "gptq"):
        run(aq, tmp_path / method, "--bits", 2, "--method", method, "--quantize-sensitive", *BOTH)
    auto, gptq = (report(tmp_path / method) for method in ("auto", "gptq"))
    methods = [entry["method"] for entry in auto.values()]
    assert methods.count("trellis") > 20 and methods.count("gptq") >= 1 # a weight of four rows
    for name, entry in auto.items():
        assert (entry["output_error"] or 0) <= (gptq[name]["output_error"] or 0), name
        assert entry["output_bytes"] <= gptq[name]["output_bytes"], name
    stored = aq_reader.read_container(tmp_path / "auto" / FILE)[0]
    for name, entry in auto.items():
        assert (f"{name}.aq_act_scales" in stored) == (entry["method"] == "gptq"), name


def test_the_tool_names_the_codes_in_use(aq, tmp_path):
    """Those of the layers, not those that the config would suggest."""
    cases = [((), "INT2, trellis of 256 states, group"), (BOTH, "INT2, trellis of 256 states, group"),
             (("--quantize-sensitive",), "INT2, affine and trellis of 256 states, group"),
             (("--method", "ptq"), "INT2, affine, group")]
    for number, (words, code) in enumerate(cases):
        told = call([aq, "quantize", dit.DIGITS, tmp_path / str(number), "--profile", "edge",
                     "--min-accuracy", "0", *words])
        assert f"  code     {code}" in told, words


def test_no_layer_for_it(aq, tmp_path):
    assert "2, 3 and 4 bits" in run(aq, tmp_path / "q", "--method", "trellis", "--bits", 8, status=1)


def test_tables_are_those_of_the_trainer(repo, tmp_path):
    """bench/trellis_tables.c: the smallest tables in use reach what it states, and training on from them hardly
    gains: they are an optimum of its measure, and the search, the values and the trainer fit one another."""
    call(["gcc", "-std=c99", "-O1", "-DARROWQUANT_NO_STDIO", repo / "bench/trellis_tables.c", "-o",
          tmp_path / "tables", *LIBS])
    told = re.fullmatch(r"2 bits,  256 states: ([\d.]+) dB, trained on ([\d.]+) dB\n",
                        call([tmp_path / "tables", "2", "256"]))
    shipped, trained = map(float, told.groups())
    assert shipped == pytest.approx(11.10, abs=0.01) and -0.002 < trained - shipped < 0.02
