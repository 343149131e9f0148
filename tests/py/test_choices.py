"""Every method with every format and width: what cannot be is refused by the plan, before anything is
written, and what the plan accepts ends well."""
import itertools
import json

import pytest

from tool_models import bad, good, good_json, llm_tensors, plain_folder

FORMATS = ("native", "gguf", "compressed-tensors", "arrow")
R2Q = "r2q is for 2 bits in the native format"
MOMENTS = "gptq needs the second moments"
FORMAT, WIDTH = "has no place for a trellis", "2, 3 and 4 bits"
# method: {(format, bits): the method of the layers, or the reason of the refusal}; the rest: `None`
EXPECTED = {
    "auto": {None: "ptq"},
    "ptq": {None: "ptq"},
    "r2q": {("native", 2): "r2q", None: R2Q},
    "gptq": {None: MOMENTS},
    "trellis": {("native", 2): "trellis", ("native", 4): "trellis", ("native", 8): WIDTH, None: "trellis"},
}
CODES = {
    ("native", "ptq"): {"affine"}, ("native", "r2q"): {"residual"}, ("native", "trellis"): {"trellis"},
    ("gguf", "ptq"): {"Q2_K", "Q4_K", "Q8_0"}, ("compressed-tensors", "ptq"): {"zero_point"},
    ("arrow", "ptq"): {"affine"},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return plain_folder(tmp_path_factory.mktemp("choices") / "m", llm_tensors(1, 256))


@pytest.mark.parametrize("method", EXPECTED)
def test_method_format_bits(method, aq, model, tmp_path):
    for format, bits in itertools.product(FORMATS, (2, 4, 8)):
        expected = EXPECTED[method].get((format, bits), EXPECTED[method][None])
        words = ["--method", method, "--format", format, "--bits", bits, "--min-accuracy", "0",
                 *(["--trellis-states", 256] if method == "trellis" else [])]
        out = tmp_path / f"{format}-{bits}"
        if (format, expected) not in CODES:
            planned = bad(aq, "quantize", model, "--dry-run", *words)
            assert expected in planned, (format, bits)
            assert bad(aq, "quantize", model, out, *words) == planned
            assert not list(tmp_path.iterdir()), (format, bits)
            continue
        good(aq, "quantize", model, "--dry-run", *words)
        good(aq, "quantize", model, out, *words)
        report = json.loads((out / "arrowquant_report.json").read_text())["tensors"]
        layers = [entry for entry in report if entry["bits"] < 16]
        assert len(layers) == 6 and {entry["bits"] for entry in layers} == {bits}
        assert {entry["method"] for entry in layers} == {expected}
        opened = next(out.glob("*.arrow")) if format == "arrow" else out
        codes = {entry["code"] for entry in good_json(aq, "inspect", opened)["tensors"]
                 if "code" in entry}
        assert codes <= CODES[format, expected] and len(codes) == 1
        good(aq, "validate", model, opened, "--min-accuracy", "0")
        for path in sorted(out.rglob("*"), reverse=True):
            path.unlink()
        out.rmdir()


@pytest.mark.parametrize("method, format", [("r2q", "arrow"), ("r2q", "gguf")])
def test_one_layer_of_two_bits(method, format, aq, model, tmp_path):
    """A width of one layer counts as the width of all does."""
    words = ["--method", method, "--layer-bits", "*q_proj*=2", "--min-accuracy", "0", "--format", format]
    assert R2Q in bad(aq, "quantize", model, "--dry-run", *words)
    assert R2Q in bad(aq, "quantize", model, tmp_path / "out", *words)
    assert not list(tmp_path.iterdir())
