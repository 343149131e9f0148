"""Everything that README.md tells a newcomer to type works, from a fresh copy of the project."""
import re
import shutil
import subprocess

import pytest

from conftest import REPO, call, need

README = REPO / "README.md"
# Commands that are about another machine, or about this test run itself.
SKIPPED = re.compile(r"^(git |apt|sudo |cd |make (test|bench|clean)|\.ci/run|pip |curl |wget )")


def blocks(language):
    """The fenced blocks of that language with the text before each: [(before, block)]."""
    text = README.read_text(encoding="utf-8") if README.is_file() else ""
    return [(text[:found.start()], found.group(1)) for found in
            re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)]


def programs():
    return [(before, block) for before, block in blocks("c") if re.search(r"\bmain\s*\(", block)]


def command_for(before, block):
    """The compiler's command: in the program's own comment, else named near the program."""
    text = README.read_text(encoding="utf-8")
    after = text[text.index(block) + len(block):]
    for place in (block, after[:600], before[-600:]):
        found = re.search(r"\b((?:cc|gcc|clang|c\+\+|g\+\+) [^`\n]*?\.c\b[^`\n]*)", place)
        if found:
            return found.group(1).replace("*/", "").strip().rstrip(".,;:")
    raise AssertionError("no command that compiles the program is named beside it")


@pytest.fixture
def fresh(tmp_path):
    """What a clone holds, no build/."""
    def left_out(folder, names):
        return {name for name in names if name in (".git", "build", "__pycache__")}
    target = tmp_path / "clone"
    shutil.copytree(REPO, target, ignore=left_out, symlinks=True)
    return target


def test_there_are_two_programs():
    assert len(programs()) >= 2


@pytest.mark.parametrize("number", range(len(programs())))
def test_program(number, fresh):
    """Compiled with the command beside it, in the project's top folder, then run."""
    before, block = programs()[number]
    command = command_for(before, block)
    need(command.split()[0])
    source = re.search(r"\S+\.c\b", command).group(0)
    (fresh / source).parent.mkdir(parents=True, exist_ok=True)
    (fresh / source).write_text(block, encoding="utf-8")
    compile_only, *rest = re.split(r"\s*&&\s*", command)
    call(["sh", "-c", compile_only], cwd=fresh)
    output = re.search(r"-o (\S+)", compile_only)
    run = rest[0] if rest else "./" + (output.group(1) if output else "a.out")
    assert call(["sh", "-c", run], cwd=fresh).strip()


def test_commands(fresh):
    """Every command line of every ```sh block, in order."""
    ran = 0
    for _, block in blocks("sh"):
        for line in block.replace("\\\n", " ").split("\n"):
            line = re.sub(r"^\$ ", "", line).split("  #")[0].strip()
            if not line or line.startswith("#") or SKIPPED.match(line):
                continue
            if re.match(r"(cc|gcc|clang|c\+\+|g\+\+) ", line):
                continue  # with its program, above
            done = subprocess.run(["sh", "-c", line], cwd=fresh, stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=280)
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            ran += 1
    assert ran > 0


def test_named_files_exist():
    """Relative links and files in backticks that look like paths of this project."""
    text = README.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", text)
    assert links
    for link in links:
        assert (REPO / link).exists(), link
