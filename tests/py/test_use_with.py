"""The README's section "Use it with": each of its commands and programs, in order."""
import os
import re
import subprocess
import sys

import pytest

from conftest import REPO

SECTION = re.search(r"^## Use it with.*?(?=^## )", (REPO / "README.md").read_text(encoding="utf-8"),
                    re.M | re.S).group(0)
MODEL = """
import torch
from transformers import LlamaConfig, LlamaForCausalLM
config = LlamaConfig(hidden_size=128, intermediate_size=384, num_hidden_layers=1, vocab_size=64,
                     num_attention_heads=4, dtype="bfloat16")
torch.manual_seed(1)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained("model")
"""
USED = """
ids = __import__("torch").arange(8)[None]
assert model.generate(ids, min_new_tokens=4, max_new_tokens=4, do_sample=False).shape == (1, 12)
"""


def blocks():
    found = re.findall(r"^```(sh|python)\n(.*?)^```$", SECTION, re.M | re.S)
    assert len(found) == SECTION.count("```") // 2
    return found


@pytest.fixture(scope="module")
def folder(aq, tmp_path_factory):
    """What the commands expect to find: the tool on the path, the fixtures, and a small model."""
    work = tmp_path_factory.mktemp("use")
    (work / "bin").mkdir()
    (work / "bin/aq").symlink_to(aq.resolve())
    (work / "tests").symlink_to(REPO / "tests")
    return work


def run(folder, language, text):
    environment = dict(os.environ, PATH=f"{folder / 'bin'}:{os.environ['PATH']}")
    command = ["sh", "-ec", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True,
                          timeout=250)
    assert done.returncode == 0, text + done.stdout[-1000:] + done.stderr[-3000:]


def test_each_program(folder):
    for package in ("torch", "transformers", "compressed_tensors", "pyarrow", "polars", "duckdb"):
        pytest.importorskip(package,
                            reason=f"no {package} here (tests/py/requirements-heavy.txt)")
    run(folder, "python", MODEL)
    programs = {"transformers", "pyarrow", "polars", "duckdb"}
    for language, text in blocks():
        if language == "python":
            programs -= set(re.findall(r"\w+", text))
            text += USED if "AutoModelForCausalLM" in text else ""
        run(folder, language, text)
    assert not programs
