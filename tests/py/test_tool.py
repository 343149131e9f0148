"""The command-line tool, run as a user runs it."""
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest
import safetensors.numpy
import yaml

from tool_models import (bad, environment, files_of, gaussian, good, good_json, header_of,
                         llm_tensors, plain_folder, run, sharded_folder, write_json,
                         write_safetensors)

COMMANDS = ["quantize", "validate", "inspect", "dequantize", "export-c", "config", "diff", "markov"]
RESULT_KEYS = ["quantized_path", "compression_ratio", "cosine_similarity", "model_size_mb",
               "modality", "bit_width", "quantization_time_s", "bits_per_weight", "sqnr_db",
               "layers_quantized", "layers_kept", "layers_raised"]
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
FF = "transformer_blocks.0.ff.net.0.proj.weight"


def flags_of(aq, command):
    return set(re.findall(r"--[a-z-]+", good(aq, "help", command)))


def tensors_of(aq, path):
    return {tensor["name"]: tensor for tensor in good_json(aq, "inspect", path)["tensors"]}


@pytest.fixture
def quantized(aq, digits, tmp_path):
    out = tmp_path / "quantized"
    good(aq, "quantize", digits, out, "--quiet")
    return out


# ---------------------------------------------------------------- help and usage

def test_version(aq):
    assert re.fullmatch(r"aq \d+\.\d+\.\d+\n", good(aq, "--version"))


def test_overview_names_every_command(aq):
    text = good(aq, "help")
    for command in COMMANDS:
        assert f"\n  {command} " in text
    assert good(aq, "--help") == good(aq, "-h") == text


@pytest.mark.parametrize("command", [*COMMANDS, "help"])
def test_help_of_a_command(aq, command):
    text = good(aq, "help", command)
    assert text.startswith(f"usage: aq {command}")
    assert good(aq, command, "--help") == text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_precedence_is_in_the_help(aq):
    for command in ("quantize", "config"):
        assert re.search(r"profile.*file.*environment.*flags", good(aq, "help", command), re.S)


def test_documentation_and_help_name_the_same_flags(aq, repo):
    text = (repo / "docs/TOOL.md").read_text()
    sections = {title.split()[1]: body for title, body in
                re.findall(r"^## (aq [a-z-]+)\n(.*?)(?=^## |\Z)", text, re.S | re.M)}
    for command in COMMANDS:
        documented = set(re.findall(r"^\| `(--[a-z-]+)", sections[command], re.M))
        assert documented == flags_of(aq, command) - {"--help"}, command


def test_no_command_is_wrong_usage(aq):
    done = run(aq)
    assert done.returncode == 2 and done.stdout == "" and "usage: aq COMMAND" in done.stderr


@pytest.mark.parametrize("words, expected", [
    (["quantise", "a", "b"], "did you mean `aq quantize`?"),
    (["frobnicate"], "`aq help` lists the commands"),
    (["help", "validat"], "did you mean `aq validate`?"),
    (["quantize", "a", "b", "--bit", "4"], "did you mean --bits?"),
    (["quantize", "a", "b", "--groupsize", "64"], "did you mean --group-size?"),
    (["quantize", "a", "b", "--group=64"], "did you mean --group-size?"),
    (["quantize", "a", "b", "--zebra-crossing"], "`aq help quantize` lists its flags"),
    (["validate", "a", "b", "--bits", "4"], "unknown flag for validate: --bits"),
    (["quantize", "a", "b", "-q"], "unknown flag for quantize: -q"),
    (["quantize", "a", "b", "--bits"], "--bits needs a value"),
    (["quantize", "a", "b", "--bits", "--json"], "write --bits N"),
    (["quantize", "a", "b", "--json=yes"], "--json takes no value"),
    (["quantize", "a"], "usage: aq quantize MODEL OUT"),
    (["quantize"], "too few arguments"),
    (["quantize", "a", "b", "c"], "too many arguments"),
    (["inspect"], "too few arguments"),
    (["validate", "a"], "too few arguments"),
    (["config", "a"], "too many arguments"),
    (["inspect", "a", "--json", "--tsv"], "exclude each other"),
    (["quantize", "a", "b", "--bits", "5"], "--bits 5: "),
    (["quantize", "a", "b", "--bits", "5"], "2, 3, 4 or 8"),
    (["quantize", "a", "b", "--group-size", "100"], "32, 64, 128 or 256"),
    (["quantize", "a", "b", "--parameter-bits", "7"], "--parameter-bits 7: "),
    (["quantize", "a", "b", "--min-accuracy", "1.5"], "0 to 1"),
    (["quantize", "a", "b", "--min-sqnr-db", "loud"], "--min-sqnr-db loud: "),
    (["quantize", "a", "b", "--threads", "many"], "--threads many: "),
    (["quantize", "a", "b", "--max-memory", "-1"], "--max-memory -1: "),
    (["quantize", "a", "b", "--profile", "lokal"], "--profile lokal: "),
    (["quantize", "a", "b", "--modality", "smell"], "--modality smell: "),
    (["quantize", "a", "b", "--isa", "mmx"], "auto, scalar, avx2, avx512 or neon"),
    (["quantize", "a", "b", "--set", "bit_width"], "expected FIELD=VALUE"),
    (["quantize", "a", "b", "--set", "bitwidth=4"], "bit_width"),
    (["quantize", "a", "b", "--layer-bits", "x"], "expected PATTERN=BITS"),
    (["quantize", "a", "b", "--layer-bits", "x=5"], "2, 3, 4, 8 or 16"),
    (["dequantize", "a", "b", "--dtype", "f64"], "use f32, f16 or bf16"),
])
def test_wrong_usage(aq, words, expected):
    assert expected in bad(aq, *words, status=2)


def test_a_path_may_start_with_a_dash(aq, digits, tmp_path):
    good(aq, "quantize", "--quiet", "--", digits, "--out", cwd=tmp_path)
    assert (tmp_path / "--out/model_index.json").is_file()


def test_missing_model(aq, tmp_path):
    assert "no such file" in bad(aq, "quantize", tmp_path / "nothing", tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_full_disk_of_standard_output(aq):
    with open("/dev/full", "w") as full:
        done = subprocess.run([aq, "config"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "standard output could not be written" in done.stderr


# ---------------------------------------------------------------- quantize

def test_json_is_one_object(aq, digits, tmp_path):
    done = run(aq, "quantize", digits, tmp_path / "out", "--json")
    result = json.loads(done.stdout)
    assert set(RESULT_KEYS) <= set(result)
    assert result["quantized_path"] == str(tmp_path / "out")
    assert result["modality"] == "image" and result["bit_width"] == 4
    assert result["compression_ratio"] > 2 and 4 < result["bits_per_weight"] < 4.6
    assert 0.99 < result["cosine_similarity"] < 1 and result["sqnr_db"] > 18
    assert result["layers_quantized"] > 10 and result["layers_kept"] > 0
    assert result["layers_raised"] == 0
    assert result["quantization_time_s"] >= 0
    size = (tmp_path / "out" / WEIGHTS).stat().st_size
    assert result["model_size_mb"] == pytest.approx(size / 1e6)
    assert result["compression_ratio"] == pytest.approx((digits / WEIGHTS).stat().st_size / size)


def test_layers_in_the_json(aq, digits, tmp_path):
    result = good_json(aq, "quantize", digits, tmp_path / "out", "--layers")
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert layers[FF]["bits"] == 4 and layers[FF]["cosine_similarity"] > 0.99
    assert "layers" not in good_json(aq, "quantize", digits, tmp_path / "other")


@pytest.mark.parametrize("profile, bits, group", [("edge", 2, 256), ("local", 4, 128),
                                                  ("cloud", 8, 64)])
def test_profiles(aq, digits, tmp_path, profile, bits, group):
    result = good_json(aq, "quantize", digits, tmp_path / "out", "--profile", profile)
    tensor = tensors_of(aq, tmp_path / "out")[FF]
    assert (result["bit_width"], tensor["bits"], tensor["group_size"]) == (bits, bits, group)


def test_summary_says_what_was_done(aq, digits, tmp_path):
    text = good(aq, "quantize", digits, tmp_path / "out")
    for word in ("size ", "ratio ", "INT4, affine, group size 128, 16-bit parameters", "bits ",
                 "mean cosine 0.99", "SQNR ", "worst ", "layers ", "modality image", "time "):
        assert word in text, word
    assert re.search(r"pos_embed\.proj\.weight  \(embedding\)", text)
    assert re.search(r"class_embedder\.embedding_table\.weight  x 4  \(embedding\)", text)


def test_tsv_summary(aq, digits, tmp_path):
    names, values = good(aq, "quantize", digits, tmp_path / "out", "--tsv").splitlines()
    row = dict(zip(names.split("\t"), values.split("\t"), strict=True))
    assert list(row) == RESULT_KEYS
    assert row["bit_width"] == "4" and float(row["sqnr_db"]) > 18


def test_layer_table(aq, digits, tmp_path):
    text = good(aq, "quantize", digits, tmp_path / "out", "--layers")
    assert re.search(rf"^{re.escape(FF)} +4 +0\.99\d+ +\d+\.\d\d ", text, re.M)
    rows = good(aq, "quantize", digits, tmp_path / "other", "--layers", "--tsv").splitlines()
    assert rows[0].split("\t")[:4] == ["layer", "bits", "cosine", "sqnr_db"]
    assert any(row.startswith(f"{FF}\t4\t") for row in rows)


@pytest.mark.parametrize("flags, expected", [
    (["--bits", "8"], {"bits": 8}),
    (["--bits=2"], {"bits": 2}),
    (["--bits", "2", "--bits", "8"], {"bits": 8}),
    (["--group-size", "32"], {"group_size": 32}),
    (["--symmetric"], {"code": "symmetric"}),
    (["--fast"], {"code": "affine", "bits": 4}),
    (["--parameter-bits", "8"], {"parameters": "Q8"}),
    (["--set", "bit_width=8"], {"bits": 8}),
    (["--set", "symmetric=true", "--set", "group_size=64"], {"code": "symmetric",
                                                            "group_size": 64}),
    (["--layer-bits", f"{FF}=8"], {"bits": 8}),
    (["--layer-bits", "*.ff.*=2", "--layer-bits", f"{FF}=8"], {"bits": 2}),
    (["--layer-bits", "*.ff.*=16"], {"quantized": False}),
    (["--keep", FF], {"quantized": False}),
    (["--keep", "*.ff.net.0.*"], {"quantized": False}),
    (["--keep", "transformer_blocks.0.ff"], {"quantized": False}),
    ([], {"bits": 4, "code": "affine", "group_size": 128, "parameters": "F16", "dtype": "BF16",
          "shape": [512, 128]}),
])
def test_flags_that_change_a_layer(aq, digits, tmp_path, flags, expected):
    good(aq, "quantize", digits, tmp_path / "out", "--quiet", *flags)
    tensor = tensors_of(aq, tmp_path / "out")[FF]
    assert {key: tensor.get(key) for key in expected} == expected


def test_fast_fit(aq, digits, tmp_path):
    """Said in the plan, in the report and in the summary; other bytes, which every reader reads; a
    little worse, and the same on all kernels."""
    mean = {}
    for name, flags in {"best": [], "fast": ["--fast"], "again": ["--set", "fit=fast"],
                        "scalar": ["--fast", "--isa", "scalar"]}.items():
        good(aq, "quantize", digits, tmp_path / name, "--quiet", *flags)
        report = json.loads((tmp_path / name / "arrowquant_report.json").read_text())
        fits = {tensor.get("fit") for tensor in report["tensors"] if tensor["bits"] < 16}
        assert fits == {"least_squares" if name == "best" else "fast"}
        mean[name] = report["sqnr_db"]
        good(aq, "inspect", tmp_path / name, "--verify", "--quiet")
    assert mean["best"] - 2 < mean["fast"] < mean["best"]
    weights = "transformer/diffusion_pytorch_model.safetensors"
    files = {name: (tmp_path / name / weights).read_bytes() for name in mean}
    assert files["fast"] == files["again"] == files["scalar"] != files["best"]
    assert "fast fit" in good(aq, "quantize", digits, tmp_path / "plan", "--fast", "--dry-run")


def test_sensitive_layers(aq, digits, tmp_path):
    good(aq, "quantize", digits, tmp_path / "kept", "--quiet")
    good(aq, "quantize", digits, tmp_path / "all", "--quiet", "--quantize-sensitive")
    name = "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight"
    assert not tensors_of(aq, tmp_path / "kept")[name]["quantized"]
    assert tensors_of(aq, tmp_path / "all")[name]["quantized"]


def test_sensitive_words_are_whole(aq, tmp_path):
    names = ["ahead.weight", "head.weight", "lm_head.weight", "blocks.0.overhead.weight",
             "blocks.0.norm.weight", "blocks.0.abnormal.weight", "embedding.weight",
             "unembeddable.weight"]
    model = plain_folder(tmp_path / "model",
                         {name: gaussian(i, 32, 128) for i, name in enumerate(names)})
    good(aq, "quantize", model, tmp_path / "out", "--quiet")
    done = {name: tensor["quantized"] for name, tensor in tensors_of(aq, tmp_path / "out").items()}
    assert done == {"ahead.weight": True, "head.weight": False, "lm_head.weight": False,
                    "blocks.0.overhead.weight": True, "blocks.0.norm.weight": False,
                    "blocks.0.abnormal.weight": True, "embedding.weight": False,
                    "unembeddable.weight": True}


def test_pattern_that_matches_nothing_is_noted(aq, digits, tmp_path):
    text = good(aq, "quantize", digits, tmp_path / "out", "--keep", "*.nonsense.*")
    assert re.search(r'^note: .*"\*\.nonsense\.\*" matches no tensor', text, re.M)


def test_data_free_is_said(aq, digits, tmp_path):
    assert re.search(r"^note: .*(data-free|calibration)",
                     good(aq, "quantize", digits, tmp_path / "out"), re.M | re.I)


def test_raised_layers_are_listed(aq, digits, tmp_path):
    done = run(aq, "quantize", digits, tmp_path / "out", "--bits", "2", "--min-accuracy", "0.999")
    assert done.returncode == 0
    assert re.search(rf"^    {re.escape(FF)}  2 -> 8 bits, cosine 0\.999", done.stdout, re.M)
    tensors = tensors_of(aq, tmp_path / "out")
    assert tensors[FF]["bits"] == 8
    result = good_json(aq, "quantize", digits, tmp_path / "other", "--bits", "2",
                       "--min-accuracy", "0.999")
    raised = [t for t in tensors.values() if t["quantized"] and t["bits"] > 2]
    assert result["layers_raised"] == len(raised) > 10


def test_sqnr_gate_raises_too(aq, digits, tmp_path):
    good(aq, "quantize", digits, tmp_path / "out", "--bits", "2", "--min-sqnr-db", "15", "--quiet")
    assert tensors_of(aq, tmp_path / "out")[FF]["bits"] == 4


def test_unreachable_gate_keeps_the_layer(aq, digits, tmp_path):
    text = good(aq, "quantize", digits, tmp_path / "out", "--min-sqnr-db", "200")
    assert "changed by the quality gates:" in text
    assert not tensors_of(aq, tmp_path / "out")[FF]["quantized"]


def test_fail_fast(aq, digits, tmp_path):
    text = bad(aq, "quantize", digits, tmp_path / "out", "--bits", "2", "--min-accuracy", "0.999",
               "--fail-fast")
    assert "transformer_blocks" in text and "0.999" in text
    assert os.listdir(tmp_path) == []


def test_streaming_threads_and_isa_give_the_same_bytes(aq, digits, tmp_path):
    good(aq, "quantize", digits, tmp_path / "plain", "--quiet")
    wanted = (tmp_path / "plain" / WEIGHTS).read_bytes()
    for i, flags in enumerate((["--streaming"], ["--threads", "1"], ["--threads", "7"],
                               ["--isa", "scalar"], ["--isa", "auto"], ["--resume"],
                               ["--max-memory", "200"])):
        good(aq, "quantize", digits, tmp_path / str(i), "--quiet", *flags)
        assert (tmp_path / str(i) / WEIGHTS).read_bytes() == wanted, flags


def test_modality_flag(aq, digits, tmp_path):
    result = good_json(aq, "quantize", digits, tmp_path / "out", "--modality", "audio")
    assert result["modality"] == "audio"


def test_unsupported_instruction_set(aq, digits, tmp_path):
    usable = good_json(aq, "inspect", "--cpu")["cpu"]["usable"]
    missing = next(name for name in ("neon", "avx512", "avx2") if name not in usable)
    assert missing in bad(aq, "quantize", digits, tmp_path / "out", "--isa", missing)


# ---------------------------------------------------------------- dry run

@pytest.mark.parametrize("flags", [[], ["--bits", "2", "--group-size", "32"], ["--symmetric"],
                                   ["--bits", "8", "--parameter-bits", "8"],
                                   ["--quantize-sensitive"]])
def test_dry_run_predicts_the_size(aq, digits, tmp_path, flags):
    plan = good_json(aq, "quantize", digits, "--dry-run", *flags)
    good(aq, "quantize", digits, tmp_path / "out", "--quiet", *flags)
    size = (tmp_path / "out" / WEIGHTS).stat().st_size
    assert plan["input_bytes"] == (digits / WEIGHTS).stat().st_size
    assert plan["predicted_output_bytes"] == pytest.approx(size, rel=0.02)
    tensors = {tensor["name"]: tensor for tensor in plan["tensors"]}
    actual = tensors_of(aq, tmp_path / "out")
    assert {name for name, tensor in tensors.items() if tensor["bits"] < 16} == {
        name for name, tensor in actual.items() if tensor["quantized"]}
    for name, tensor in tensors.items():
        if tensor.get("params", "").upper() == actual[name].get("parameters", ""):
            assert tensor["output_bytes"] == actual[name]["bytes"], name


def test_dry_run_writes_nothing(aq, digits, tmp_path):
    text = good(aq, "quantize", digits, tmp_path / "out", "--dry-run")
    assert "predicted" in text and "at 4 bits" in text and "kept as they are" in text
    assert "(embedding)" in text
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- where the output goes

def test_existing_output_is_refused(aq, digits, tmp_path, quantized):
    before = files_of(quantized)
    assert "--overwrite" in bad(aq, "quantize", digits, quantized, "--bits", "8")
    assert files_of(quantized) == before
    good(aq, "quantize", digits, quantized, "--bits", "8", "--overwrite", "--quiet")
    assert tensors_of(aq, quantized)[FF]["bits"] == 8
    assert os.listdir(tmp_path) == ["quantized"]


def test_overwrite_spares_what_is_no_model(aq, digits, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_text("miaow")
    assert "no model" in bad(aq, "quantize", digits, tmp_path / "photos", "--overwrite")
    assert (tmp_path / "photos/cat.jpg").read_text() == "miaow"


@pytest.mark.parametrize("out", ["model", "model/out", "model/transformer", "."])
def test_output_in_or_around_the_input(aq, digits, tmp_path, out):
    shutil.copytree(digits, tmp_path / "model")
    before = files_of(tmp_path)
    bad(aq, "quantize", tmp_path / "model", tmp_path / out, "--overwrite")
    assert files_of(tmp_path) == before


def test_output_folder_must_have_a_parent(aq, digits, tmp_path):
    assert "there is no folder" in bad(aq, "quantize", digits, tmp_path / "a/b")


def test_input_is_never_touched(aq, digits, tmp_path):
    shutil.copytree(digits, tmp_path / "model")
    before = files_of(tmp_path / "model")
    good(aq, "quantize", tmp_path / "model", tmp_path / "out", "--quiet")
    assert files_of(tmp_path / "model") == before


# ---------------------------------------------------------------- kinds of models

def test_pipeline_is_carried_over(aq, digits, quantized):
    before, after = files_of(digits), files_of(quantized)
    assert set(after) == {*before, "arrowquant_report.json"}
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        assert after[name] == before[name]
    config = json.loads(after["transformer/config.json"])
    assert config.pop("quantization_config")["quant_method"] == "arrowquant"
    assert config == json.loads(before["transformer/config.json"])


def test_sharded_language_model(aq, tmp_path):
    tensors = llm_tensors()
    model = sharded_folder(tmp_path / "model", tensors)
    (model / "tokenizer.json").write_text('{"version": "1.0"}')
    (model / "tokenizer.model").write_bytes(bytes(range(256)))
    (model / "special").mkdir()
    (model / "special/notes.txt").write_text("kept")
    result = good_json(aq, "quantize", model, tmp_path / "out")
    assert result["modality"] == "text" and result["layers_quantized"] == 12
    before, after = files_of(model), files_of(tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer.model", "special/notes.txt"):
        assert after[name] == before[name]
    index = json.loads(after["model.safetensors.index.json"])
    for name, file in index["weight_map"].items():
        assert name in header_of(tmp_path / "out" / file)
    stored = {name for file in set(index["weight_map"].values())
              for name in header_of(tmp_path / "out" / file) if name != "__metadata__"}
    assert stored == set(index["weight_map"])
    assert "model.layers.0.mlp.up_proj.weight.aq_codes" in stored
    assert "lm_head.weight" in stored and "model.embed_tokens.weight" in stored
    assert run(aq, "validate", model, tmp_path / "out").returncode == 0


def test_index_file_as_the_model(aq, tmp_path):
    model = sharded_folder(tmp_path / "model", llm_tensors(1))
    good(aq, "quantize", model / "model.safetensors.index.json", tmp_path / "out", "--quiet")
    assert tensors_of(aq, tmp_path / "out")["model.layers.0.mlp.up_proj.weight"]["quantized"]


def test_bare_file(aq, tmp_path):
    write_safetensors(tmp_path / "lora.safetensors", {"lora.down": gaussian(1, 64, 256),
                                                      "lora.up": gaussian(2, 256, 64)})
    result = good_json(aq, "quantize", tmp_path / "lora.safetensors",
                       tmp_path / "small.safetensors")
    assert result["modality"] == "unknown" and result["layers_quantized"] == 2
    assert tensors_of(aq, tmp_path / "small.safetensors")["lora.up"]["bits"] == 4
    good(aq, "validate", tmp_path / "lora.safetensors", tmp_path / "small.safetensors")


def test_convolutions_are_rows_of_output_channels(aq, tmp_path):
    weights = gaussian(3, 64, 32, 3, 3)
    model = plain_folder(tmp_path / "model", {"blocks.0.conv.weight": weights,
                                              "blocks.0.conv.bias": gaussian(4, 64)})
    good(aq, "quantize", model, tmp_path / "out", "--quiet")
    header = header_of(tmp_path / "out/model.safetensors")
    assert header["blocks.0.conv.weight.aq_codes"]["shape"] == [64, 32 * 9 * 4 // 32]
    good(aq, "dequantize", tmp_path / "out", tmp_path / "back", "--quiet")
    back = safetensors.numpy.load_file(tmp_path / "back/model.safetensors")
    assert back["blocks.0.conv.weight"].shape == (64, 32, 3, 3)
    assert abs(back["blocks.0.conv.weight"] - weights).max() < 0.02


def test_integers_and_vectors_stay_as_they_are(aq, tmp_path):
    tensors = {"position_ids": np.arange(77, dtype="int64").reshape(1, 77),
               "table": np.arange(256, dtype="int32").reshape(16, 16),
               "mask": np.eye(8, dtype=bool), "scalar": np.float32(0.5).reshape(()),
               "bias": gaussian(1, 300), "empty": np.zeros((0, 16), "float32"),
               "blocks.0.linear.weight": gaussian(2, 32, 256)}
    model = plain_folder(tmp_path / "model", tensors)
    text = good(aq, "quantize", model, tmp_path / "out")
    assert "  3 tensors  kept: integers or booleans" in text
    assert "  3 tensors  kept: not a matrix" in text
    after = safetensors.numpy.load_file(tmp_path / "out/model.safetensors")
    for name in set(tensors) - {"blocks.0.linear.weight"}:
        assert after[name].dtype == tensors[name].dtype
        assert np.array_equal(after[name], tensors[name])


def test_variant(aq, tmp_path):
    model = plain_folder(tmp_path / "model", {"blocks.0.a.weight": gaussian(1, 64, 128)})
    write_safetensors(model / "model.fp16.safetensors",
                      {"blocks.0.a.weight": gaussian(1, 64, 128, dtype="float16")})
    good(aq, "quantize", model, tmp_path / "full", "--quiet")
    assert tensors_of(aq, tmp_path / "full")["blocks.0.a.weight"]["dtype"] == "F32"
    good(aq, "quantize", model, tmp_path / "half", "--quiet", "--variant", "fp16")
    assert tensors_of(aq, tmp_path / "half")["blocks.0.a.weight"]["dtype"] == "F16"
    assert "fp8" in bad(aq, "quantize", model, tmp_path / "none", "--variant", "fp8")


def test_legacy_weights(aq, tmp_path):
    (tmp_path / "model").mkdir()
    write_json(tmp_path / "model/config.json", {})
    (tmp_path / "model/pytorch_model.bin").write_bytes(b"\x80\x02")
    text = bad(aq, "quantize", tmp_path / "model", tmp_path / "out")
    assert "pytorch_model.bin" in text and "safetensors" in text


def test_similar_names_do_not_collide(aq, tmp_path):
    names = ["a.b.weight", "a_b.weight", "A.b.weight", "a.B.weight", "a-b.weight", "a..b.weight"]
    tensors = {name: gaussian(i, 32, 128) for i, name in enumerate(names)}
    model = plain_folder(tmp_path / "model", tensors)
    good(aq, "quantize", model, tmp_path / "out", "--quiet", "--bits", "8")
    good(aq, "dequantize", tmp_path / "out", tmp_path / "back", "--quiet")
    back = safetensors.numpy.load_file(tmp_path / "back/model.safetensors")
    assert set(back) == set(names)
    for name in names:
        assert abs(back[name] - tensors[name]).max() < 0.002


def test_components(aq, digits, tmp_path):
    shutil.copytree(digits, tmp_path / "model")
    plain_folder(tmp_path / "model/text_encoder", llm_tensors(1))
    index = json.loads((tmp_path / "model/model_index.json").read_text())
    index["text_encoder"] = ["transformers", "CLIPTextModel"]
    write_json(tmp_path / "model/model_index.json", index)
    encoder = "text_encoder/model.safetensors"
    good(aq, "quantize", tmp_path / "model", tmp_path / "denoiser", "--quiet")
    before = files_of(tmp_path / "model")
    assert files_of(tmp_path / "denoiser")[encoder] == before[encoder]
    good(aq, "quantize", tmp_path / "model", tmp_path / "both", "--quiet",
         "--components", "transformer,text_encoder")
    names = tensors_of(aq, tmp_path / "both")
    assert names[f"transformer/{FF}"]["quantized"]
    assert names["text_encoder/model.layers.0.mlp.up_proj.weight"]["quantized"]
    assert "text_encoder/lm_head.weight" in good(aq, "quantize", tmp_path / "model", "--dry-run",
                                                 "--components", "transformer,text_encoder")
    good(aq, "quantize", tmp_path / "model", tmp_path / "encoder", "--quiet",
         "--components", "text_encoder")
    assert files_of(tmp_path / "encoder")[WEIGHTS] == before[WEIGHTS]
    assert "vae" in bad(aq, "quantize", tmp_path / "model", tmp_path / "x", "--components", "vae")


def test_control_characters_in_names_reach_no_terminal(aq, tmp_path):
    write_safetensors(tmp_path / "evil.safetensors", {"a\x1b[31mred": gaussian(1, 32, 128)})
    out = tmp_path / "out.safetensors"
    done = run(aq, "quantize", tmp_path / "evil.safetensors", out, "--layers")
    assert "\x1b" not in done.stdout + done.stderr
    assert "\x1b" not in good(aq, "inspect", out)
    assert "a\x1b[31mred" in tensors_of(aq, out)


# ---------------------------------------------------------------- config, environment, flags

def test_config_is_yaml_that_loads_again(aq, tmp_path):
    text = good(aq, "config", "--profile", "edge", "--layer-bits", "*.ff.*=8", "--keep", "*.a.*",
                "--keep", "b.c", "--components", 'x,y "z"', "--min-sqnr-db", "12.5")
    loaded = uncommented(text)
    assert loaded["bit_width"] == 2 and loaded["group_size"] == 256
    assert loaded["deployment_profile"] == "edge" and loaded["min_sqnr_db"] == 12.5
    assert loaded["components"] == ["x", 'y "z"']
    assert loaded["sensitive_patterns"] == ["*.a.*"] and loaded["sensitive_layers"] == ["b.c"]
    assert "*.ff.*" in str(loaded["layer_bits"])
    assert "#" in text
    (tmp_path / "c.yaml").write_text(text)
    assert good(aq, "config", "--config", tmp_path / "c.yaml") == text


def test_flag_patterns_stand_before_those_of_the_file(aq, digits, tmp_path):
    text = good(aq, "config", "--layer-bits", f"{FF}=2", "--keep", "*.attn1.to_q.*")
    (tmp_path / "c.yaml").write_text(text)
    good(aq, "quantize", digits, tmp_path / "out", "--quiet", "--config", tmp_path / "c.yaml",
         "--layer-bits", "*.ff.*=8", "--keep", "*.attn1.to_k.*")
    tensors = tensors_of(aq, tmp_path / "out")
    assert tensors[FF]["bits"] == 8
    for layer in ("to_q", "to_k"):
        assert not tensors[f"transformer_blocks.1.attn1.{layer}.weight"]["quantized"]


def uncommented(text):
    """The config with the profile's defaults, which are printed as comments, put in force."""
    return yaml.safe_load(re.sub(r"^(\s*)# ?(\s*\w+:)", r"\1\2", text, flags=re.M))


def effective(aq, *words, **env):
    return uncommented(good(aq, "config", *words, env=env))


def test_precedence(aq, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("group_size: 32\n")
    profile = ["--profile", "cloud"]
    assert effective(aq)["group_size"] == 128
    assert effective(aq, *profile)["group_size"] == 64
    both = effective(aq, *profile, "--config", file)
    assert both["group_size"] == 32 and both["bit_width"] == 8
    env = {"ARROW_QUANT_GROUP_SIZE": "256"}
    assert effective(aq, *profile, "--config", file, **env)["group_size"] == 256
    assert effective(aq, *profile, "--config", file, "--group-size", "128",
                     **env)["group_size"] == 128


def test_profile_of_the_file_and_of_the_flag(aq, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("deployment_profile: edge\nmin_accuracy: 0.5\n")
    assert effective(aq, "--config", file)["bit_width"] == 2
    changed = effective(aq, "--config", file, "--profile", "cloud")
    assert changed["deployment_profile"] == "cloud" and changed["bit_width"] == 8
    assert changed["min_accuracy"] == 0.5


def test_environment(aq, digits, tmp_path):
    result = good_json(aq, "quantize", digits, tmp_path / "out",
                       env={"ARROW_QUANT_BIT_WIDTH": "8"})
    assert result["bit_width"] == 8
    assert "ARROW_QUANT_BIT_WIDTH" in bad(aq, "quantize", digits, tmp_path / "other",
                                          env={"ARROW_QUANT_BIT_WIDTH": "five"})
    assert "mmx" in bad(aq, "inspect", digits, env={"ARROW_QUANT_ISA": "mmx"})


def test_bad_config_file(aq, digits, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("bit_width: 4\nbit_widht: 2\n")
    text = bad(aq, "quantize", digits, tmp_path / "out", "--config", file)
    assert str(file) in text and "bit_widht" in text and "bit_width" in text
    assert "nothing.yaml" in bad(aq, "config", "--config", tmp_path / "nothing.yaml")


# ---------------------------------------------------------------- validate and diff

def test_validate(aq, digits, quantized):
    text = good(aq, "validate", digits, quantized)
    assert text.startswith("passed: ") and "mean cosine 0.99" in text
    result = good_json(aq, "validate", digits, quantized)
    assert result["passed"] is True and result["cosine_similarity"] > 0.99
    assert next(l for l in result["layers"] if l["name"] == FF)["cosine_similarity"] > 0.99
    assert good(aq, "validate", digits, quantized, "--quiet") == ""
    rows = good(aq, "validate", digits, quantized, "--tsv").splitlines()
    assert rows[0].split("\t")[-1] == "passed" and rows[1].split("\t")[-1] == "yes"
    assert FF in good(aq, "validate", digits, quantized, "--layers", "--threads", "1")


def test_validate_that_does_not_pass(aq, digits, quantized):
    done = run(aq, "validate", digits, quantized, "--min-accuracy", "0.9999")
    assert done.returncode == 1 and done.stdout.startswith("not passed: ")
    assert re.search(rf"^{re.escape(FF)} .* no$", done.stdout, re.M)
    done = run(aq, "validate", digits, quantized, "--min-sqnr-db", "60", "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["passed"] is False
    assert run(aq, "validate", digits, quantized, "--min-sqnr-db", "60",
               "--quiet").returncode == 1
    assert run(aq, "validate", digits, quantized, "--min-sqnr-db", "5").returncode == 0


def test_validate_another_model(aq, quantized, tmp_path):
    other = plain_folder(tmp_path / "other", {"blocks.0.a.weight": gaussian(1, 64, 128)})
    assert "transformer" in bad(aq, "validate", other, quantized)


def test_diff(aq, digits, quantized, tmp_path):
    text = good(aq, "diff", digits, quantized)
    assert re.search(rf"^{re.escape(FF)} +4 +0\.99", text, re.M) and "tensors compared" in text
    assert "inf" in text
    same = good_json(aq, "diff", digits, digits)
    assert same["cosine_similarity"] == 1
    rows = good(aq, "diff", digits, quantized, "--tsv").splitlines()
    assert rows[0].split("\t") == ["layer", "bits", "cosine", "sqnr_db", "max_error"]
    assert good(aq, "diff", digits, quantized, "--quiet") == ""


def test_diff_lists_what_only_one_has(aq, tmp_path):
    shared = gaussian(1, 64, 128)
    a = plain_folder(tmp_path / "a", {"x.weight": shared, "left.weight": shared})
    b = plain_folder(tmp_path / "b", {"x.weight": shared, "right.weight": shared})
    text = good(aq, "diff", a, b)
    assert "only in A (1):\n  left.weight\n" in text and "only in B (1):\n  right.weight\n" in text


# ---------------------------------------------------------------- inspect

def test_inspect_table(aq, quantized):
    text = good(aq, "inspect", quantized)
    assert re.search(rf"^{re.escape(FF)} +512x128 +BF16 +4 +affine +128 +F16 +\d+ +0\.99\d+ +\d+",
                     text, re.M)
    assert re.search(r"^pos_embed\.proj\.bias +128 +BF16 +16 +- +- +- +256 +- +-$", text, re.M)
    assert "82 tensors of 1424772 weights, " in text and "modality image" in text
    assert re.search(r"28 quantized: \d\d % of the weights, 4\.\d+ stored bits each", text)


def test_inspect_json(aq, digits, quantized):
    model = good_json(aq, "inspect", quantized)
    assert model["quantized"] is True and model["tensor_count"] == len(model["tensors"]) == 82
    assert model["weight_bytes"] == (quantized / WEIGHTS).stat().st_size
    assert 4 < model["bits_per_weight"] < 4.6
    plain = good_json(aq, "inspect", digits)
    assert plain["quantized"] is False and plain["bits_per_weight"] is None
    assert plain["weights"] == model["weights"] == 1424772


def test_inspect_tsv(aq, quantized):
    rows = [row.split("\t") for row in good(aq, "inspect", quantized, "--tsv").splitlines()]
    assert {len(row) for row in rows} == {10} and len(rows) == 83


def test_verify(aq, digits, quantized):
    assert "agree with their checksums" in good(aq, "inspect", quantized, "--verify")
    assert good_json(aq, "inspect", quantized, "--verify")["verified"] > 82
    assert "no checksums" in good(aq, "inspect", digits, "--verify")
    path = quantized / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    text = bad(aq, "inspect", quantized, "--verify")
    assert "CRC-32" in text and "transformer_blocks" in text
    good(aq, "inspect", quantized)


def test_cpu(aq):
    cpu = good_json(aq, "inspect", "--cpu")["cpu"]
    assert cpu["isa"] in cpu["usable"] and "scalar" in cpu["usable"]
    assert "usable here: scalar" in good(aq, "inspect", "--cpu")
    assert good_json(aq, "inspect", "--cpu", "--isa", "scalar")["cpu"]["isa"] == "scalar"


def test_cpu_and_a_model(aq, quantized):
    both = good_json(aq, "inspect", quantized, "--cpu", "--verify")
    assert both["cpu"]["isa"] and both["verified"] and both["tensors"]


# ---------------------------------------------------------------- dequantize

@pytest.mark.parametrize("dtype, name", [("f32", "F32"), ("f16", "F16"), ("bf16", "BF16"),
                                         (None, "F32")])
def test_dequantize(aq, digits, quantized, tmp_path, dtype, name):
    flags = ["--dtype", dtype] if dtype else []
    result = good_json(aq, "dequantize", quantized, tmp_path / "back", *flags)
    assert result["dtype"] == name and result["output_path"] == str(tmp_path / "back")
    before, after = header_of(digits / WEIGHTS), header_of(tmp_path / "back" / WEIGHTS)
    before.pop("__metadata__", None), after.pop("__metadata__", None)
    assert {key: value["shape"] for key, value in before.items()} == {
        key: value["shape"] for key, value in after.items()}
    assert after[FF]["dtype"] == name
    config = json.loads((tmp_path / "back/transformer/config.json").read_text())
    assert config == json.loads((digits / "transformer/config.json").read_text())
    assert good_json(aq, "diff", digits, tmp_path / "back")["cosine_similarity"] > 0.99


def test_dequantized_values_are_those_of_the_quantized_model(aq, quantized, tmp_path):
    good(aq, "dequantize", quantized, tmp_path / "back")
    same = good_json(aq, "diff", quantized, tmp_path / "back")
    assert same["cosine_similarity"] == 1
    assert same["sqnr_db"] is None  # no error at all


def test_dequantize_refuses(aq, digits, quantized, tmp_path):
    good(aq, "dequantize", quantized, tmp_path / "back", "--quiet")
    assert "--overwrite" in bad(aq, "dequantize", quantized, tmp_path / "back")
    good(aq, "dequantize", quantized, tmp_path / "back", "--overwrite", "--quiet")
    bad(aq, "dequantize", digits, tmp_path / "other")
    bad(aq, "dequantize", quantized, quantized / "inside")


def test_quantizing_twice_is_refused(aq, quantized, tmp_path):
    assert "quantized" in bad(aq, "quantize", quantized, tmp_path / "again")


# ---------------------------------------------------------------- progress and interruption

@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """About 150 MB, so that a run can be met in its middle."""
    folder = tmp_path_factory.mktemp("large")
    block = gaussian(1, 1024, 3072)
    model = plain_folder(folder / "model", {f"blocks.{i}.ff.weight": block for i in range(12)})
    yield model
    shutil.rmtree(folder)


def test_pipe_gets_plain_lines(aq, digits, tmp_path):
    done = run(aq, "quantize", digits, tmp_path / "out")
    assert "\x1b" not in done.stderr + done.stdout and "\r" not in done.stderr + done.stdout
    assert re.search(r"^quantize \d+%  [\d.]+ of [\d.]+ MB  \d+ MB/s  eta ", done.stderr, re.M)


def test_every_long_command_shows_progress(aq, large, tmp_path):
    out = tmp_path / "out"
    for phase, words in [("quantize", ["quantize", large, out]),
                         ("validate", ["validate", large, out]),
                         ("validate", ["diff", large, out]),
                         ("verify", ["inspect", out, "--verify"]),
                         ("dequantize", ["dequantize", out, tmp_path / "back"])]:
        shown = run(aq, *words, "--tsv" if words[0] == "diff" else "--json").stderr
        percent = [int(number) for number in re.findall(r"^\w+ (\d+)%", shown, re.M)]
        assert shown.splitlines()[0].startswith(f"{phase} 0%"), words
        assert percent == sorted(percent) and percent[-1] == 100, words


def test_quiet_prints_nothing(aq, digits, tmp_path):
    done = run(aq, "quantize", digits, tmp_path / "out", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def on_terminal(words, width=100, **env):
    """Runs with a terminal as standard error; what it showed."""
    master, slave = pty.openpty()
    import fcntl
    import struct
    import termios
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=slave, text=True,
                               env=environment(TERM="xterm", **env))
    os.close(slave)
    shown = b""
    while select.select([master], [], [], 60)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    os.close(master)
    out = process.stdout.read()
    assert process.wait() == 0
    return shown.decode(), out


@pytest.mark.parametrize("width", [200, 100, 60, 30])
def test_terminal_gets_a_bar(aq, large, tmp_path, width):
    shown, out = on_terminal([aq, "quantize", large, tmp_path / "out", "--isa", "scalar",
                              "--threads", "1"], width)  # long enough to be seen half done
    frames = [frame for frame in shown.split("\r") if frame.strip()]
    assert len(frames) >= 3 and all(len(frame) < width for frame in frames)
    assert "\n" not in shown
    assert any(frame.startswith("quantize") for frame in frames)
    if width >= 100:
        assert any(re.search(r"\[#+\.+\] +\d+%  \d+ MB/s  eta \d+:\d\d  .*blocks\.\d+", frame)
                   for frame in frames)
    assert shown.endswith("\r") and not shown.split("\r")[-2].strip()
    assert "12 quantized" in out


def test_dumb_terminal_gets_lines(aq, digits, tmp_path):
    shown, _ = on_terminal(["env", "TERM=dumb", aq, "quantize", digits, tmp_path / "out"])
    assert shown.count("\n") >= 2 and "\r" not in shown.replace("\r\n", "\n")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_leaves_nothing(aq, large, tmp_path, number, status):
    process = subprocess.Popen([aq, "quantize", large, tmp_path / "out", "--threads", "1",
                                "--profile", "edge"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=environment())
    for line in process.stderr:
        if line.startswith("quantize"):
            break
    assert process.poll() is None and os.listdir(tmp_path) != []
    sent = time.monotonic()
    process.send_signal(number)
    rest, errors = process.communicate(timeout=30)
    took = time.monotonic() - sent
    assert process.returncode == status and rest == ""
    assert "aq: " in errors and "cancelled" in errors
    assert os.listdir(tmp_path) == []
    assert took < 1


def test_killed_run_is_cleaned_up_by_the_next(aq, digits, large, tmp_path):
    process = subprocess.Popen([aq, "quantize", large, tmp_path / "out", "--threads", "1"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                               env=environment())
    for line in process.stderr:
        if line.startswith("quantize"):
            break
    process.kill()
    process.communicate()
    assert not (tmp_path / "out").exists() and os.listdir(tmp_path) != []
    good(aq, "quantize", digits, tmp_path / "out", "--quiet")
    assert os.listdir(tmp_path) == ["out"]


def test_exact_figures_are_null_in_json(aq, tmp_path):
    """A layer that is coded without error: SQNR is infinite, which JSON cannot say."""
    levels = np.tile(np.arange(16, dtype="float32"), (32, 16))
    model = plain_folder(tmp_path / "model", {"blocks.0.a.weight": levels})
    result = good_json(aq, "quantize", model, tmp_path / "out")
    assert result["sqnr_db"] is None or math.isfinite(result["sqnr_db"])
    assert result["cosine_similarity"] == pytest.approx(1)
