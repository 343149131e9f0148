"""Configurations: what we write means the same to PyYAML, the environment, files, the docs."""
import json
import math
import os
import re
import subprocess

import pytest
import yaml

ENVIRONMENT = {
    "ARROW_QUANT_BIT_WIDTH": ("bit_width", "8", 8, "5"),
    "ARROW_QUANT_NUM_TIME_GROUPS": ("num_time_groups", "1", 1, "0"),
    "ARROW_QUANT_GROUP_SIZE": ("group_size", "0x40", 64, "65"),
    "ARROW_QUANT_MIN_ACCURACY": ("min_accuracy", "0.5", 0.5, "1.5"),
    "ARROW_QUANT_CALIBRATION_SAMPLES": ("calibration_samples", "1000000", 1000000, "1000001"),
    "ARROW_QUANT_FAIL_FAST": ("fail_fast", "true", True, "1"),
    "ARROW_QUANT_NUM_THREADS": ("num_threads", " 3 ", 3, "three"),
    "ARROW_QUANT_ENABLE_STREAMING": ("enable_streaming", "yes", True, "maybe"),
    "ARROW_QUANT_MAX_MEMORY_MB": ("max_memory_limit_mb", "1_000", 1000, "1.5"),
}


@pytest.fixture(scope="session")
def config(tool):
    program = tool("config")
    clean = {name: value for name, value in os.environ.items()
             if not name.startswith("ARROW_QUANT_")}

    def run(*words, text="", environment=()):
        done = subprocess.run([program, *words], input=text.encode(), capture_output=True,
                              timeout=60, env={**clean, **dict(environment)})
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()
    return run


def flat(tree, prefix=""):
    """{"a": {"b": 1}} as {"a.b": 1}; layer_bits stays a map."""
    result = {}
    for key, value in (tree or {}).items():
        if prefix + key in ("thermodynamic", "thermodynamic.validation",
                            "thermodynamic.boundary_smoothing"):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[prefix + key] = value
    return result


def same(ours, theirs):
    """Equal in value and type; the tool prints whole numbers without a point."""
    if isinstance(theirs, float) and not isinstance(ours, bool):
        return ours is None if math.isnan(theirs) else float(ours) == theirs
    if isinstance(theirs, dict):
        return list(ours.items()) == list(theirs.items())
    return type(ours) is type(theirs) and ours == theirs


def test_what_is_written_means_the_same_to_pyyaml(config):
    """Each config was also loaded again and compared by the tool itself."""
    written = [json.loads(line) for line in config("random", "7", "1500").strip().split("\n")]
    assert len(written) == 1500
    strings = 0
    for case in written:
        read = flat(yaml.safe_load(case["yaml"]))
        assert set(read) == set(case["explicit"])
        for path, value in read.items():
            assert same(case["values"][path], value), (path, value, case["values"][path])
        strings += len(case["values"]["layer_bits"]) + len(case["values"]["sensitive_layers"])
    assert strings > 1000


def uncommented(text):
    """Commented fields, without the lines that explain."""
    return re.sub(r"^( *)# ([a-z_]+: )", r"\1\2", text, flags=re.M)


@pytest.mark.parametrize("profile", ["edge", "local", "cloud"])
def test_commented_fields_are_the_profile(config, profile):
    text = config("template", profile)
    assert flat(yaml.safe_load(text)) == {"deployment_profile": profile}
    everything = flat(yaml.safe_load(uncommented(text)))
    ours = json.loads(config("yaml", text=f"deployment_profile: {profile}"))["values"]
    assert set(everything) == set(ours)
    for path, value in everything.items():
        assert same(ours[path], value), path
    again = json.loads(config("yaml", text=uncommented(text)))
    assert again["values"] == ours and set(again["explicit"]) == set(ours)


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_environment(config, name):
    path, text, value, bad = ENVIRONMENT[name]
    plain = json.loads(config("env"))
    read = json.loads(config("env", environment={name: text}))
    assert read["values"] == {**plain["values"], path: value} and read["explicit"] == [path]
    for text in (bad, "", "[", "4 5", "'4'"):
        refused = json.loads(config("env", environment={name: text}))
        assert refused["error"].startswith(f"{name}: {path}: expected "), refused
        assert text[:3] in refused["error"]


def test_environment_is_all_or_nothing(config):
    assert json.loads(config("env", environment={"ARROW_QUANT_BIT_WIDTH": "~"}))["error"].endswith(
        "expected 2, 3, 4 or 8, found nothing")
    both = {"ARROW_QUANT_BIT_WIDTH": "2", "ARROW_QUANT_MIN_ACCURACY": "2"}
    refused = json.loads(config("env", environment=both))
    assert refused["status"] == "accuracy"
    assert json.loads(config("env", environment={"ARROW_QUANT_OTHER": "x"}))["explicit"] == []


@pytest.mark.parametrize("field, value, status", [
    ("bit_width", "16", "bit_width"), ("bit_width", "four", "bit_width"),
    ("group_size", "1", "group_size"), ("num_time_groups", "1000", "time_groups"),
    ("min_accuracy", "-0.1", "accuracy"), ("min_accuracy", "1e-3", "accuracy"),
    ("parameter_bits", "32", "configuration"), ("calibration_samples", "0", "configuration"),
    ("modality", "video", "configuration"), ("min_sqnr_db", "300", "configuration"),
    ("layer_bits", "{a: 5}", "bit_width"), ("layer_bits", "{'': 4}", "bit_width"),
    ("thermodynamic.boundary_smoothing.window_size", "21", "configuration"),
    ("thermodynamic.boundary_smoothing.interpolation", "step", "configuration"),
    ("thermodynamic.validation.smoothness_threshold", "1.1", "configuration"),
    ("sensitive_patterns", "['']", "configuration"), ("components", "['.']", "configuration"),
    ("thermodynamic", "{}", "configuration"), ("profile", "edge", "configuration"),
])
def test_statuses(config, field, value, status):
    assert json.loads(config("set", field, value))["status"] == status


def test_files(config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfbit_width: 8\r\ndeployment_profile: edge\r\n")
    read = json.loads(config("load", path))
    assert read["values"]["bit_width"] == 8 and read["values"]["group_size"] == 256
    path.write_text("bit_width: 8\nbit_widths: 8\n")
    refused = json.loads(config("load", path))["error"]
    assert refused == f'{path}:2:1: unknown field "bit_widths"; did you mean "bit_width"?'
    missing = tmp_path / "none.yaml"
    assert str(missing) in json.loads(config("load", missing))["error"]
    assert "error" in json.loads(config("load", tmp_path))


def test_documentation_is_up_to_date(config, repo):
    page = repo / "docs/CONFIG.md"
    assert page.read_text(encoding="utf-8") == config("docs"), (
        "run: build/tools/config docs > docs/CONFIG.md")


def test_example_sets_every_field(config, repo):
    example = repo / "examples/config.example.yaml"
    read = json.loads(config("load", example))
    theirs = flat(yaml.safe_load(example.read_text(encoding="utf-8")))
    assert set(read["explicit"]) == set(read["values"]) == set(theirs)
    for path, value in theirs.items():
        assert same(read["values"][path], value), path


def test_documented_yaml_loads(config, repo):
    page = (repo / "docs/CONFIG.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert blocks
    for block in blocks:
        assert "error" not in json.loads(config("yaml", text=block))
