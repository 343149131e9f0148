"""amalgamate.py: the committed headers are up to date, and it refuses what it promises to refuse."""
import re
import shutil
import subprocess
import sys

import pytest


def amalgamate(folder, *arguments):
    return subprocess.run([sys.executable, folder / "amalgamate.py", *arguments],
                          capture_output=True, text=True, timeout=60)


@pytest.fixture
def copy(repo, tmp_path):
    """A copy of the sources that a test may spoil."""
    shutil.copytree(repo / "src", tmp_path / "src")
    for name in ["amalgamate.py", "LICENSE", "arrowquant.h", "arrowquant_simd.h"]:
        shutil.copy(repo / name, tmp_path / name)
    return tmp_path


def append(path, text):
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


def refused(copy, *words):
    before = (copy / "arrowquant.h").read_bytes()
    done = amalgamate(copy)
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr
    assert (copy / "arrowquant.h").read_bytes() == before


def test_headers_are_up_to_date(repo):
    done = amalgamate(repo, "--check")
    assert done.returncode == 0, done.stderr


def test_same_bytes_elsewhere(repo, tmp_path):
    assert amalgamate(repo, "-o", str(tmp_path)).returncode == 0
    for name in ["arrowquant.h", "arrowquant_simd.h"]:
        assert (tmp_path / name).read_bytes() == (repo / name).read_bytes()


def test_check_sees_a_changed_source(copy):
    append(copy / "src/base/base.h", "/* one more line */\n")
    done = amalgamate(copy, "--check")
    assert done.returncode == 1
    assert "edit src/…, run amalgamate.py" in done.stderr
    assert amalgamate(copy).returncode == 0
    assert amalgamate(copy, "--check").returncode == 0


def test_check_sees_an_edited_header(copy):
    append(copy / "arrowquant_simd.h", "\n")
    done = amalgamate(copy, "--check")
    assert done.returncode == 1 and "arrowquant_simd.h" in done.stderr


def test_unlisted_source_is_refused(copy):
    (copy / "src/base/lost.c").write_text("int aq_lost(void);\n")
    refused(copy, "src/base/lost.c", "neither header")


def test_missing_source_is_refused(copy):
    (copy / "src/base/text.h").unlink()
    refused(copy, "src/base/text.h", "does not exist")


def test_room_above_is_refused(copy):
    append(copy / "src/base/json.c", '#include "../quant/quant.h"\n')
    refused(copy, "src/base/json.c", "base/ may not include quant/")


def test_simd_includes_nothing(copy):
    append(copy / "src/simd/simd.h", '#include "../api/arrowquant_api.h"\n')
    refused(copy, "src/simd/simd.h", "simd/ may not include api/")


def test_later_file_is_refused(copy):
    append(copy / "src/base/base.h", '#include "yaml.h"\n')
    refused(copy, "src/base/base.h", "stands after it")


def test_macro_left_defined_is_refused(copy):
    append(copy / "src/base/json.c", "#define AQ_LEFT 1\n")
    refused(copy, "src/base/json.c", "AQ_LEFT", "#undef")


def test_shared_static_name_is_refused(copy):
    append(copy / "src/base/json.c", "static int aq_twin(void) { return 1; }\n")
    append(copy / "src/base/yaml.c", "static int aq_twin(void) { return 2; }\n")
    refused(copy, "aq_twin", "src/base/json.c", "src/base/yaml.c")


def test_begin_and_end_markers(repo):
    """Each source is in the header once, between its markers."""
    text = (repo / "arrowquant.h").read_text(encoding="utf-8")
    begun = re.findall(r"^/\* ---- begin src/(\S+) ---- \*/$", text, re.M)
    assert begun == re.findall(r"^/\* ---- end src/(\S+) ---- \*/$", text, re.M)
    assert len(begun) == len(set(begun))
    simd_only = {"simd/arrowquant_simd_api.h", "simd/exports.c", "api/manual.h"}
    sources = {path.relative_to(repo / "src").as_posix()
               for path in (repo / "src").rglob("*.[ch]")}
    assert set(begun) == sources - simd_only


def test_no_include_of_ours_is_left(repo):
    for name in ["arrowquant.h", "arrowquant_simd.h"]:
        text = (repo / name).read_text(encoding="utf-8")
        text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
        assert not re.search(r'#\s*include\s*"', text)


def test_the_manual_comes_first(repo):
    """A reader meets the manual, the program included, before anything else."""
    lines = (repo / "arrowquant.h").read_text(encoding="utf-8").split("\n")
    head = "\n".join(lines[:95])
    for word in ["Generated: do not edit", "run amalgamate.py", "#define ARROWQUANT_IMPLEMENTATION",
                 "int main(void)", "aq_quantize_model(", "ARROWQUANT_NO_STDIO", "LICENSE"]:
        assert word in head, word


def test_the_license_comes_last(repo):
    license = (repo / "LICENSE").read_text(encoding="utf-8").rstrip("\n")
    for name in ["arrowquant.h", "arrowquant_simd.h"]:
        assert (repo / name).read_text(encoding="utf-8").endswith(f"/*\n{license}\n*/\n")
