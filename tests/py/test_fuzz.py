"""The libFuzzer targets: each is built, runs all seeds and all earlier findings, and then fuzzes for a
bounded number of executions. `make fuzz` runs them for long."""
import os
import pathlib
import re
import subprocess
import time

import pytest

from conftest import BUILD, REPO, call, held, need, stale

FUZZ = REPO / "tests/fuzz"
TARGETS = sorted(path.stem[len("fuzz_"):] for path in FUZZ.glob("fuzz_*.c"))
FLAGS = ["-g1", "-O1", "-fno-sanitize-recover=all"]
RUNS, SECONDS = int(os.environ.get("AQ_FUZZ_RUNS", 20000)), int(os.environ.get("AQ_FUZZ_SECONDS", 10))


@pytest.fixture(scope="session")
def target():
    """target(name): the program; the library is compiled once for all of them."""
    need("clang")
    probe = subprocess.run(["clang", "-fsanitize=fuzzer,address,undefined", "-x", "c", "-", "-o",
                            os.devnull], input="int LLVMFuzzerTestOneInput(const unsigned char *d, "
                           "unsigned long n) { return d && n ? 0 : 0; }", text=True,
                           capture_output=True)
    if probe.returncode != 0:
        pytest.skip("clang has no libFuzzer here")
    folder = BUILD / "fuzz"

    def build(name):
        library, program = folder / "arrowquant.o", folder / name
        source = FUZZ / f"fuzz_{name}.c"
        with held("fuzz"):
            folder.mkdir(exist_ok=True)
            if stale(library, [REPO / "arrowquant.h"]):
                main = folder / "arrowquant.c"
                main.write_text('#define ARROWQUANT_IMPLEMENTATION\n#include "arrowquant.h"\n')
                call(["clang", *FLAGS, "-fsanitize=fuzzer-no-link,address,undefined", "-I", REPO,
                      "-DAQ_LIB=extern", "-DAQ_SIMD_LIB=extern", "-c", main, "-o", library])
            if stale(program, [source, FUZZ / "fuzz.h", library]):
                call(["clang", *FLAGS, "-Wall", "-Wextra", "-Werror",
                      "-fsanitize=fuzzer,address,undefined", source, library, "-o", program, "-lm",
                      "-lpthread"])
        return program
    return build


def fuzz(program, *words):
    done = subprocess.run([str(program), *map(str, words)], capture_output=True, text=True,
                          errors="replace", timeout=280 + 2 * SECONDS, cwd=program.parent)
    assert done.returncode == 0, "\n".join(done.stderr.splitlines()[-60:])
    return done.stderr


@pytest.mark.parametrize("name", TARGETS)
def test_target(target, name, tmp_path, record_property):
    program = target(name)
    seeds, regressions = FUZZ / "seeds" / name, FUZZ / "regressions" / name
    known = sorted(seeds.iterdir()) + (sorted(regressions.iterdir()) if regressions.is_dir() else [])
    fuzz(program, *known)
    begin = time.monotonic()
    output = fuzz(program, f"-runs={RUNS}", f"-max_total_time={SECONDS}", "-max_len=1024",
                  f"-artifact_prefix={tmp_path}/", tmp_path, seeds)
    executed = int(re.findall(r"^Done (\d+) runs", output, re.M)[-1])
    record_property("figure", f"fuzz {name}: {len(known)} seeds and regressions, {executed} "
                              f"executions in {time.monotonic() - begin:.0f} s, 0 crashes")
    assert executed > 500


def test_every_target_has_seeds():
    assert len(TARGETS) >= 6
    assert {path.name for path in (FUZZ / "seeds").iterdir()} == set(TARGETS)
    for path in FUZZ.glob("fuzz_*.c"):
        assert f"tests/fuzz/{path.name} \\\n" in path.read_text(), "its build command"
