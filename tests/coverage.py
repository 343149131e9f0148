#!/usr/bin/env python3
"""Branch coverage of src/, by gcov: `make coverage`.

The library is compiled file by file with gcc --coverage; the C tests and a set of runs of the tool are
its work. Prints lines and branches a file and in total; exits 1 below --least percent of branches.
Kernels that cannot run here do not count: those of other architectures, and of AVX-512 where the
machine has none (tests/bare.py runs them on an emulated one)."""
import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

TOP = pathlib.Path(__file__).resolve().parent.parent
BUILD = TOP / "build/coverage"
# Small arenas: each piece is an allocation of its own, so that test_faults makes each of them fail.
PIECES = ["-DAQ_ARENA_FIRST=16u", "-DAQ_ARENA_LARGEST=16u"]
FLAGS = ["gcc", "-std=c99", "-O0", "-g1", "-fPIC", "--coverage", "-fprofile-update=atomic", "-I", TOP,
         *PIECES]
LIBS = ["-lpthread", "-lm"]
HOT = {"cholesky.c", "gptq.c", "feedback.c", "quantize.c", "tile.c"}
# Python tests that build the library themselves, or do not run it.
OTHERS = {"amalgamation", "builds", "demo", "fuzz", "install", "python_api", "readme", "symbols", "tools"}


def run(command, **options):
    return subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace",
                          **{"timeout": 900, **options})


def must(command, **options):
    done = run(command, **options)
    if done.returncode != 0:
        sys.exit(f"{command}\n{done.stdout}{done.stderr}")
    return done.stdout


def level(source):
    """Hours of trellis searches and products become minutes; elsewhere each branch stays as written, and
    threads do not lose counts."""
    hot = source.parent.name == "simd" or "trellis" in source.name or source.name in HOT
    return ["-O1", "-fprofile-update=single"] if hot else []


def build():
    """The objects of src/, the C tests, and the tool on top of the same objects."""
    shutil.rmtree(BUILD, ignore_errors=True)
    BUILD.mkdir(parents=True)
    sources = sorted((TOP / "src").rglob("*.c"))
    objects = [BUILD / ("-".join(source.relative_to(TOP / "src").parts)[:-2] + ".o")
               for source in sources]
    tool = BUILD / "aq.c"  # without the implementation: the objects have it
    tool.write_text((TOP / "examples/aq.c").read_text().replace(
        "#define ARROWQUANT_IMPLEMENTATION\n", "").replace("../arrowquant.h", "arrowquant.h"))
    tests = sorted((TOP / "tests/c").glob("t*_*.c"))  # test_… and tool_…
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda pair: must([*FLAGS, *level(pair[0]), "-c", pair[0], "-o", pair[1]],
                                        cwd=BUILD),
                      zip(sources, objects)))
        programs = [BUILD / test.stem for test in tests]
        list(pool.map(lambda pair: must(["gcc", "-std=c99", "-O1", *PIECES, "-I", TOP / "tests/c", "-I", TOP,
                                         pair[0], *objects, "-o", pair[1], "-lgcov", *LIBS]),
                      zip(tests, programs)))
    must(["gcc", "-std=gnu99", "-O1", "-I", TOP, tool, *objects, "-o", BUILD / "aq", "-lgcov", *LIBS])
    return [path for path in programs if path.name.startswith("test_")], BUILD / "aq"


def tool_runs(aq, folder):
    """What a user does, right and wrong; the exit status does not matter here."""
    digits, count = TOP / "tests/fixtures/digits-dit", 0
    weights = digits / "transformer/diffusion_pytorch_model.safetensors"
    isas = ["auto", "scalar", "avx2", "avx512"]
    for isa in isas:
        for words in (["--bits", 2], ["--bits", 4, "--symmetric"], ["--bits", 8],
                      ["--bits", 2, "--parameter-bits", 8, "--streaming", "--min-sqnr-db", 14],
                      ["--bits", 4, "--parameter-bits", 8, "--symmetric", "--group-size", 32],
                      ["--fail-fast", "--min-accuracy", 0.9999999], ["--dry-run", "--json"]):
            out = folder / f"q{count}"
            for command in (["quantize", digits, out, *words], ["inspect", out, "--verify", "--json"],
                            ["validate", digits, out], ["dequantize", out, folder / f"p{count}"],
                            ["diff", digits, folder / f"p{count}"],
                            ["quantize", digits, out, "--overwrite", "--quiet"]):
                run([aq, *command, "--isa", isa])
                count += 1
    for command in (["quantize", weights, folder / "one.safetensors"], ["quantize", weights, folder / "d"],
                    ["inspect", folder / "one.safetensors"], ["inspect", "/nowhere"], ["config"],
                    ["quantize", digits, digits / "inside"], ["quantize", digits, digits],
                    ["quantize", folder / "q0", folder / "again"], ["dequantize", digits, folder / "e"]):
        run([aq, *command])
        count += 1
    return count


def pytest_runs(aq):
    """The Python tests that drive the tool and the test programs, on the measured ones."""
    python = TOP / "build/venv/bin/python"
    if not python.is_file():
        return "no build/venv: run `make test` first for more"
    tests = [path for path in sorted((TOP / "tests/py").glob("test_*.py"))
             if path.stem[len("test_"):] not in OTHERS]
    done = run([python, "-m", "pytest", *tests, "-q", "-p",
                "no:cacheprovider", "-n", os.cpu_count(), "-k", "not large and not 4_gib and not contracted "
                "and not registers and not libm and not switches", "--rootdir",
                TOP], timeout=7200, env={**os.environ, "AQ_TOOL": str(aq)})
    return done.stdout.strip().splitlines()[-1]


def cannot_run(notes):
    try:
        return (notes.name.startswith(("simd-avx512", "simd-vnni"))
                and "avx512_vnni" not in pathlib.Path("/proc/cpuinfo").read_text())
    except OSError:
        return False


def measure():
    """{file: [lines hit, lines, branches hit, branches]}"""
    found = {}
    for notes in sorted(BUILD.glob("*.gcno")):
        if cannot_run(notes):
            print(f"{notes.stem}: not counted, no AVX-512 here")
            continue
        text = must(["gcov", "--json-format", "--stdout", "-b", notes.name], cwd=BUILD)
        for line in text.splitlines():
            for file in json.loads(line)["files"]:
                path = pathlib.Path(file["file"])
                if TOP / "src" not in path.parents or path.suffix != ".c":
                    continue
                sums = found.setdefault(str(path.relative_to(TOP)), [0, 0, 0, 0])
                for entry in file["lines"]:
                    sums[0] += entry["count"] > 0
                    sums[1] += 1
                    sums[2] += sum(branch["count"] > 0 for branch in entry["branches"])
                    sums[3] += len(entry["branches"])
    return found


def percent(part, whole):
    return 100.0 * part / whole if whole else 100.0


def main():
    parser = argparse.ArgumentParser(description="Branch coverage of src/.")
    parser.add_argument("--least", type=float, default=90.0, help="percent of branches")
    parser.add_argument("--uncovered", metavar="FILE", help="list the lines of FILE with such branches")
    options = parser.parse_args()
    if options.uncovered:
        return list_uncovered(options.uncovered)
    programs, aq = build()
    failed = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for program, done in zip(programs, pool.map(lambda p: run([p], cwd=TOP), programs)):
            if done.returncode != 0:
                failed.append(program.name)
    with tempfile.TemporaryDirectory() as folder:
        runs = tool_runs(aq, pathlib.Path(folder))
    print(f"{len(programs)} C tests{', failed: ' + ', '.join(failed) if failed else ''}; {runs} runs of "
          f"the tool; pytest: {pytest_runs(aq)}")
    found, total = measure(), [0, 0, 0, 0]
    for name, sums in found.items():
        total = [a + b for a, b in zip(total, sums)]
        print(f"{name:40} lines {percent(*sums[:2]):5.1f} %  branches {percent(*sums[2:]):5.1f} % of "
              f"{sums[3]}")
    print(f"{'total':40} lines {percent(*total[:2]):5.1f} %  branches {percent(*total[2:]):5.1f} % of "
          f"{total[3]}")
    return 1 if percent(*total[2:]) < options.least else 0


def list_uncovered(name):
    source = (TOP / name).read_text().splitlines()
    notes = BUILD / ("-".join(pathlib.Path(name).relative_to("src").parts)[:-2] + ".gcno")
    for line in must(["gcov", "--json-format", "--stdout", "-b", notes.name], cwd=BUILD).splitlines():
        for file in json.loads(line)["files"]:
            if not file["file"].endswith(name):
                continue
            for entry in file["lines"]:
                missed = sum(branch["count"] == 0 for branch in entry["branches"])
                if missed:
                    number = entry["line_number"]
                    print(f"{number:5} {missed}/{len(entry['branches'])} {source[number - 1].rstrip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
