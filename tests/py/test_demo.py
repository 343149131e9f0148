"""What a new user does first: the demo, the README's programs, the examples."""
import json
import os
import re
import subprocess

import pytest

from conftest import link_example
from tool_models import environment

STRICT = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion",
          "-Werror"]


def call(words, **options):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=280,
                          env=environment(), **options)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    return done.stdout


def demo_rows(text):
    """The table: {profile: columns}."""
    found = re.findall(r"^(edge|local|cloud) +(.*)$", text, re.M)
    return {profile: columns.split() for profile, columns in found}


@pytest.fixture(scope="module")
def demo(aq, repo):
    """What the demo prints; it leaves nothing behind."""
    process = subprocess.Popen(["sh", "examples/demo.sh"], cwd=repo, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, text=True, env=environment())
    text = process.communicate(timeout=280)[0]
    assert process.returncode == 0
    assert not (repo / f"build/demo.{process.pid}").exists()
    return text


def test_demo_prints_each_profile(demo):
    rows = demo_rows(demo)
    assert [rows[profile][0] for profile in ("edge", "local", "cloud")] == ["2", "4", "8"]
    stored = [float(row[1]) for row in rows.values()]
    sqnr = [float(row[5]) for row in rows.values()]
    assert stored == sorted(stored) and sqnr == sorted(sqnr)
    assert all(row[-1] == "passed" for row in rows.values())
    assert "(embedding)" in demo


def test_interrupted_demo_cleans_up(aq, repo):
    process = subprocess.Popen(["sh", "examples/demo.sh"], cwd=repo, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, text=True, env=environment())
    assert process.stdout.readline()
    process.stdout.close()
    process.terminate()
    process.wait(timeout=60)
    assert not (repo / f"build/demo.{process.pid}").exists()


def test_demo_runs_from_anywhere(aq, repo, tmp_path):
    assert len(demo_rows(call(["sh", repo / "examples/demo.sh"], cwd=tmp_path))) == 3


def test_make_demo_calls_the_script(repo):
    recipe = call(["make", "-n", "demo"], cwd=repo)
    assert "sh examples/demo.sh" in recipe


# ---------------------------------------------------------------- README

def readme_programs(repo):
    """[(source, commands)]: each ```c block and the ```sh block that follows it."""
    text = (repo / "README.md").read_text()
    return re.findall(r"```c\n(.*?)```.*?```sh\n(.*?)```", text, re.S)


def test_readme_programs_are_short(repo):
    programs = readme_programs(repo)
    assert len(programs) == 2
    for source, _ in programs:
        assert len(source.splitlines()) <= 15 and "int main(void)" in source
        assert max(len(line) for line in source.splitlines()) <= 100


def test_readme_tool_commands_run(aq, repo, tmp_path):
    """Every `build/aq …` line of the README, in order, in one folder."""
    text = (repo / "README.md").read_text()
    commands = re.findall(r"^ *(build/aq .*?)(?: +#.*)?$", text, re.M)
    assert len(commands) >= 6
    (tmp_path / "build").symlink_to(aq.parent)
    (tmp_path / "tests").symlink_to(repo / "tests")
    for command in commands:
        call(["sh", "-e", "-c", command], cwd=tmp_path)


def test_readme_table_is_what_the_demo_prints(demo, repo):
    """Bits, stored bits, size, ratio, cosine and SQNR are the same on every machine."""
    text = (repo / "README.md").read_text()
    for profile, columns in demo_rows(demo).items():
        row = re.search(rf"^\| {profile} \|(.*)\|$", text, re.M).group(1)
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[:6] == columns[:6], profile
        assert cells[-1] == columns[7], profile


# ---------------------------------------------------------------- examples

@pytest.fixture(scope="module")
def example(repo, tmp_path_factory):
    """example(name): the program made from examples/<name>.c."""
    folder, made = tmp_path_factory.mktemp("examples"), {}

    def build(name):
        if name not in made:
            made[name] = link_example(f"{name}.c", folder / name, *STRICT)
        return made[name]
    return build


def test_minimal(example, digits, tmp_path):
    text = call([example("minimal"), digits, tmp_path / "out"])
    assert re.fullmatch(r"[\d.]+ times smaller, 4\.\d+ bits a weight, cosine similarity 0\.99\d+\n",
                        text)
    failed = subprocess.run([example("minimal"), digits, tmp_path / "out"], capture_output=True)
    assert failed.returncode == 1 and b"exists" in failed.stderr


def test_progress(example, digits, tmp_path):
    text = call([example("progress"), digits, tmp_path / "out", "1000"])
    assert "%  quantize " in text and re.search(r"out: [\d.]+ MB in [\d.]+ s", text)


def test_progress_can_stop_a_run(example, digits, tmp_path):
    program = example("progress")
    done = subprocess.run([program, digits, tmp_path / "out", "-1"], capture_output=True, text=True)
    assert done.returncode == 1 and "nothing was written" in done.stdout
    assert os.listdir(tmp_path) == []


def test_quantize_tensor(example):
    lines = call([example("quantize_tensor")]).splitlines()
    sqnr = [float(re.search(r"SQNR +([\d.]+)", line).group(1)) for line in lines]
    assert len(sqnr) == 3 and sqnr[0] > 9 and sqnr[1] > 20 and sqnr[2] > 43


def test_plan_json_of_the_tool_is_the_librarys(aq, digits):
    plan = json.loads(call([aq, "quantize", digits, "--dry-run", "--json"]))
    assert plan["arrowquant_plan"] == 1 and len(plan["tensors"]) == 82
