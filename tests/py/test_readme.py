"""Everything that README.md tells a newcomer to type works, from a fresh copy of the project."""
import re
import shutil

import pytest

from conftest import REPO, WARNINGS, call, need

# without the section about other programs, which test_use_with.py runs
README = re.sub(r"^## Use it with.*?(?=^## )", "", (REPO / "README.md").read_text(encoding="utf-8"),
                flags=re.M | re.S)
# About another machine, or about this test run itself.
SKIPPED = re.compile(r"^(git|apt|apt-get|sudo|cd|pip|make (test|bench|clean))\b")
COMPILER = re.compile(r"^(cc|gcc|clang|c\+\+|g\+\+) ")


def blocks():
    """The fenced and the indented blocks in order: [(language, text)]; indented ones are shell."""
    pattern = r"^```(\w*)\n(.*?)^```$|((?:^    [^\n]*\n)+)"
    return [("sh", indented) if indented else (language, fenced)
            for language, fenced, indented in re.findall(pattern, README, re.M | re.S)]


def programs():
    """[(text, command)]: each C program, and the command after it that compiles and runs it."""
    found, text = [], None
    for language, block in blocks():
        if language == "c" and re.search(r"\bmain\s*\(", block):
            text = block
        elif text and COMPILER.match(block):
            found.append((text, block.strip()))
            text = None
    return found


def commands():
    """The shell's lines that are to be tried, without prompts and comments."""
    lines = [line for language, block in blocks() if language == "sh"
             for line in block.replace("\\\n", " ").split("\n")]
    lines = [re.sub(r"\s+#.*|^\$ ", "", line.strip()) for line in lines]
    return [line for line in lines if line and line[0] != "#"
            and not SKIPPED.match(line) and not COMPILER.match(line)]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """What a clone holds, no build/."""
    def left_out(folder, names):
        return {name for name in names if name in (".git", "build", "__pycache__")}
    target = tmp_path_factory.mktemp("readme") / "clone"
    shutil.copytree(REPO, target, ignore=left_out, symlinks=True)
    return target


def test_programs(fresh):
    """In order, in the project's top folder, each with the very command that stands after it."""
    found = programs()
    assert len(found) == 2
    assert len(found) == sum("main(" in block for language, block in blocks() if language == "c")
    shown = []
    for text, command in found:
        need(command.split()[0])
        source = re.search(r"\S+\.c\b", command).group(0)
        (fresh / source).write_text(text, encoding="utf-8")
        call(["gcc", "-std=c99", *WARNINGS, "-fsyntax-only", source], cwd=fresh)
        shown.append(call(["sh", "-e", "-c", command], cwd=fresh))
    ratio, cosine = re.search(r"([\d.]+) times smaller.*cosine.* ([\d.]+)", shown[0]).groups()
    assert float(ratio) > 2 and 0.99 < float(cosine) < 1
    assert any(float(value) for value in re.findall(r"-?\d+\.\d+", shown[1]))
    assert (fresh / "digits-int4/arrowquant_report.json").is_file()


def test_python_programs(fresh, python):
    """Pasted into a file and run at the top level."""
    found = [block for language, block in blocks() if language == "python"]
    assert found
    for text in found:
        assert python(text, cwd=fresh).strip()


def test_commands(fresh, aq):
    """Every other line that is given to type, in order. (`make aq` made this tool, too.)"""
    (fresh / "build").mkdir()
    shutil.copy(aq, fresh / "build/aq")
    call(["make", "-s", "aq"], cwd=fresh)
    tried = commands()
    assert sum(line.startswith("build/aq ") for line in tried) >= 6
    for line in tried:
        call(["sh", "-c", line], cwd=fresh)


def test_links():
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", README)
    assert links
    for link in links:
        assert (REPO / link).exists(), link
