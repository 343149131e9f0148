#!/usr/bin/env python3
"""Builds the library for other machines, compilers and flags, and runs it: `make test-cross`.

    tests/cross.py            every build
    tests/cross.py --quick    the builds that `make test` has
    tests/cross.py -k WORD    only builds whose name contains WORD
    tests/cross.py -j N       N jobs at once (default: the number of cores)

Other machines are emulated by qemu-user. Every build runs the C tests, says which kernels it chose,
and has the tool quantize the bundled model and a file with every type of weights: it must write what
the default build of this machine writes, byte for byte, find what that wrote intact, and dequantize
it to the same bytes. Random groups of weights, 10^6 or a few, must have the same checksums
(tests/groups.py). Then no compiler may have fused a product and a sum in the kernels, and Windows
builds must compile. What cannot be had here is skipped. The last line is always
`N passed, N failed, N skipped`.
"""
import argparse
import concurrent.futures
import filecmp
import itertools
import json
import os
import pathlib
import platform
import random
import re
import shutil
import struct
import sys
import tempfile
import time

import bare
import groups
import run
from run import TOP, BUILD, LIBS, WARNINGS, Variant, say

EMULATED_SECONDS = 900
X86 = platform.machine() in ("x86_64", "AMD64")
ADDED = re.compile(r"fml[as]|fn?m(add|sub)|vfn?m(add|sub)|m[as]d?[de]br?$")  # product and sum in one


class Build(Variant):
    """A compiler with flags, what runs its programs, and the kernels that must be chosen there."""

    def __init__(self, key, compiler, flags, runner=(), isa=None, packages=(), quick=False,
                 tests=""):
        super().__init__(key, compiler, flags, True, EMULATED_SECONDS)
        self.runner, self.isa, self.packages, self.quick = list(runner), isa, packages, quick
        self.tests = tests  # only C tests whose name contains it
        if runner:
            self.environment = {"AQ_TEST_BRIEF": "1", "AQ_SIMD_GROUPS": "3000"}

    def tool(self):
        return BUILD / "cross" / self.key / "aq"


def cross(key, prefix, flags, isa, libc, quick=False):
    return Build(key, f"{prefix}-gcc", [*flags, "-O2", "-static"], [f"qemu-{key}"], isa,
                 [f"gcc-{prefix}", libc, "qemu-user"], quick)


def emulated(cpu, isa, tests):
    return Build(f"cpu-{cpu}", "gcc", ["-std=c99", "-O2"], ["qemu-x86_64", "-cpu", cpu], isa,
                 ["qemu-user"], False, tests)


HOST = Build("host", "gcc", ["-std=c99", "-O2"])
MACHINES = [
    cross("aarch64", "aarch64-linux-gnu", ["-std=c99"], "neon", "libc6-dev-arm64-cross", True),
    # Big-endian. GCC widens its floats under -std=c99.
    cross("s390x", "s390x-linux-gnu", ["-std=gnu99"], "scalar", "libc6-dev-s390x-cross", True),
    cross("i386", "i686-linux-gnu", ["-std=c99", "-msse2", "-mfpmath=sse"], "scalar",
          "libc6-dev-i386-cross", True),
    cross("riscv64", "riscv64-linux-gnu", ["-std=gnu99"], "scalar", "libc6-dev-riscv64-cross"),
    Build("aarch64-clang", "clang", ["--target=aarch64-linux-gnu", "-std=c99", "-O2", "-static"],
          ["qemu-aarch64"], "neon", ["clang", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"]),
    Build("aarch64-O3", "aarch64-linux-gnu-gcc", ["-std=gnu99", "-O3", "-static"],
          ["qemu-aarch64"], "neon", tests="simd"),
    Build("musl", "musl-gcc", ["-std=c99", "-O2", "-static"], packages=["musl-tools"]),
]
FLAGS = [
    Build("gcc-O0", "gcc", ["-std=c99", "-O0"]),
    Build("gcc-O3", "gcc", ["-std=gnu99", "-O3"]),
    Build("gcc-lto", "gcc", ["-std=c99", "-O2", "-flto"]),
    Build("gcc-unsigned-char", "gcc", ["-std=c99", "-O2", "-funsigned-char"]),
    Build("gcc-no-simd", "gcc", ["-std=c99", "-O2", "-DARROWQUANT_NO_SIMD"], isa="scalar"),
    Build("clang-O0", "clang", ["-std=c99", "-O0"]),
    Build("clang-O3", "clang", ["-std=gnu99", "-O3"]),
    Build("clang-lto", "clang", ["-std=c99", "-O2", "-flto"], packages=["lld"]),
]
SIMDE = BUILD / "simde"
# AVX-512 where there is none, by SIMDe's intrinsics: tests/emulated/immintrin.h.
AVX512 = Build("avx512-emulated", "gcc",
               ["-std=gnu99", "-O2", "-mavx2", "-mfma", "-mf16c", "-mpclmul", "-ffp-contract=off", "-Wno-psabi",
                "-I", str(TOP / "tests/emulated"), "-isystem", str(SIMDE / "cmeel.prefix/include"),
                "-DAQ_EMULATED_FEATURES=(AQ_CPU_AVX512 | AQ_CPU_VNNI)"], isa="avx512")
AVX512.inputs = sorted((TOP / "tests/emulated").iterdir())
FLAGS_X86 = [
    Build("gcc-native", "gcc", ["-std=gnu99", "-O3", "-march=native", "-ffp-contract=fast"]),
    Build("gcc-v3", "gcc", ["-std=gnu99", "-O2", "-march=x86-64-v3", "-ffp-contract=fast"]),
    Build("clang-native", "clang", ["-std=gnu99", "-O3", "-march=native"]),
    emulated("qemu64", "scalar", "simd"),
    emulated("Nehalem", "scalar", "test_q"),
    emulated("SandyBridge", "scalar", "simd"),
    emulated("Haswell", "avx2", ""),
    AVX512,
]
WINDOWS = [("x86_64-w64-mingw32-gcc", [], "gcc-mingw-w64-x86-64"),
           ("i686-w64-mingw32-gcc", ["-msse2", "-mfpmath=sse"], "gcc-mingw-w64-i686")]
# Objects of the kernels, and the program that shows their instructions.
FUSIBLE = [
    ("aarch64-linux-gnu-gcc", ["-std=gnu99", "-O3", "-ffp-contract=fast"], "aarch64-linux-gnu-"),
    ("clang", ["--target=aarch64-linux-gnu", "-std=gnu99", "-O3"], "aarch64-linux-gnu-"),
    ("s390x-linux-gnu-gcc", ["-std=gnu99", "-O3", "-ffp-contract=fast"], "s390x-linux-gnu-"),
    ("riscv64-linux-gnu-gcc", ["-std=gnu99", "-O3", "-ffp-contract=fast"], "riscv64-linux-gnu-"),
    ("gcc", ["-std=gnu99", "-O3", "-ffp-contract=fast", "-march=x86-64-v3"], ""),
    ("clang", ["-std=gnu99", "-O3", "-march=x86-64-v3"], ""),
]
# Rooms whose arithmetic reaches a file.
EXACT_ROOMS = ("simd", "quant", "calib", "format", "model")
# What the tool is asked to do with the bundled model.
SETTINGS = {
    "edge": ["--profile", "edge"],
    "local": ["--profile", "local"],
    "cloud": ["--profile", "cloud"],
    "symmetric": ["--bits", "4", "--symmetric", "--group-size", "32", "--parameter-bits", "8"],
    "calibrated": ["--bits", "2", "--group-size", "32", "--calibration",
                   "tests/fixtures/digits-dit-reference/hessians.safetensors",
                   *(f"--keep=transformer_blocks.{block}" for block in (1, 2, 3))],
    "budget": ["--target-bits", "4", "--min-accuracy", "0", "--calibration",
               "tests/fixtures/digits-dit-reference/hessians.safetensors", "--keep=*.ff.*",
               *(f"--keep=transformer_blocks.{block}" for block in (1, 2, 3))],
    "residual": ["--bits", "2", "--method", "r2q", "--min-accuracy", "0"],
    "everything": ["--bits", "2", "--quantize-sensitive", "--parameter-bits", "8"],
}
MIXED = {
    "mixed-2": ["--bits", "2", "--group-size", "64", "--quantize-sensitive"],
    "mixed-4": ["--bits", "4", "--symmetric", "--quantize-sensitive"],
    "mixed-8": ["--bits", "8", "--group-size", "32", "--parameter-bits", "8"],
}


# ---------------------------------------------------------------- set-up

def packages_of(builds, quick):
    """Command -> the packages that have it."""
    wanted = {}
    for build in builds:
        wanted.setdefault(build.compiler, set()).update(build.packages)
        if build.runner:
            wanted.setdefault(build.runner[0], set()).add("qemu-user")
    for compiler, _, package in [] if quick else WINDOWS:
        wanted.setdefault(compiler, set()).add(package)
    return wanted


def run_natively(build):
    """Many x86-64 systems run 32-bit programs too, and quicker than the emulator."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = pathlib.Path(folder) / "probe.c", pathlib.Path(folder) / "probe"
        source.write_text("int main(void) { return 0; }\n")
        run.run([build.compiler, *build.flags, source, "-o", target], 60)
        if run.run([target], 60)[0] == 0:
            build.runner, build.environment = [], {}


def set_up_simde():
    """None, or why its headers cannot be had."""
    python, problem = run.set_up_python()
    return problem or run.install(python, "tests/emulated/requirements.txt", SIMDE / "requirements.txt", 600,
                                  "--no-deps", "--upgrade", "--target", SIMDE)


def set_up_emulated(build):
    """An AVX2 machine is needed, whose processor has to agree that it is one."""
    try:
        features = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        features = []
    if "avx2" not in features:
        build.missing = "AVX-512 by SIMDe: needs a processor with AVX2"
    elif "avx512_vnni" in features:
        build.missing = "AVX-512 by SIMDe: this processor has it"
    else:
        build.missing = set_up_simde()


def set_up(builds, quick):
    packages = run.Packages()
    absent = {name for command, names in packages_of(builds, quick).items()
              if names and shutil.which(command) is None for name in names}
    if absent:
        packages.install(*sorted(absent))
    if AVX512 in builds:
        set_up_emulated(AVX512)
    for build in builds:
        probe = [build.compiler, *build.flags]
        if shutil.which(build.compiler) is None:
            build.missing = f"no {build.compiler} here"
        elif build.runner and shutil.which(build.runner[0]) is None:
            build.missing = f"no {build.runner[0]} here"
        elif not run.compiles(probe, "int main(void) { return 0; }\n"):
            build.missing = f"{' '.join(probe)} makes no program here"
        elif build.runner == ["qemu-i386"]:
            run_natively(build)


# ---------------------------------------------------------------- the same files

def weights_of(dtype, count, source):
    values = [source.gauss(0, 0.05) for _ in range(count)]
    if dtype == "F64":
        return struct.pack(f"<{count}d", *values)
    if dtype == "F32":
        return struct.pack(f"<{count}f", *values)
    if dtype == "F16":
        return struct.pack(f"<{count}e", *values)
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return bytes(source.randrange(128) & 0x3F | source.randrange(2) << 7 for _ in range(count))


def write_mixed(path):
    """One file with weights of every type, lengths that end within a group, and integers."""
    source, header, data = random.Random(7), {}, b""
    for dtype, size in [("F64", 8), ("F32", 4), ("F16", 2), ("BF16", 2), ("F8_E4M3", 1),
                        ("F8_E5M2", 1)]:
        for rows, cols in [(24, 128), (17, 211)]:
            part = weights_of(dtype, rows * cols, source)
            header[f"blocks.{dtype.lower()}.{cols}.weight"] = {
                "dtype": dtype, "shape": [rows, cols], "data_offsets": [len(data), len(data) + len(part)]}
            data += part
    part = struct.pack("<5q", *range(5))
    header["steps"] = {"dtype": "I64", "shape": [5], "data_offsets": [len(data), len(data) + 40]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data + part)


def difference(one, other):
    """What differs between two files or folders; None when they are equal."""
    if one.is_file() != other.is_file():
        return f"{other} is of another kind"
    if one.is_file():
        return None if filecmp.cmp(one, other, shallow=False) else f"{other.name} differs"
    names = [sorted(path.relative_to(top).as_posix() for path in top.rglob("*") if path.is_file())
             for top in (one, other)]
    if names[0] != names[1] or not names[0]:
        return f"other files: {names[0]} and {names[1]}"
    different = [name for name in names[0] if not filecmp.cmp(one / name, other / name, False)]
    return f"differ: {', '.join(different)}" if different else None


def aq(build, *words):
    """None, or what went wrong."""
    status, output = run.run([*build.runner, build.tool(), *words], EMULATED_SECONDS, cwd=TOP)
    return None if status == 0 else f"exit status {status}: aq {' '.join(map(str, words))}\n{output}"


class Folders:
    """What the default build writes, in a folder of its own; the others are compared with it."""

    def __init__(self, top):
        self.top = top
        self.mixed = top / "mixed.safetensors"
        write_mixed(self.mixed)
        self.cases = {name: (TOP / "tests/fixtures/digits-dit", flags)
                      for name, flags in SETTINGS.items()}
        self.cases.update({name: (self.mixed, flags) for name, flags in MIXED.items()})

    def path(self, build, name, plain=False):
        folder = self.top / build.key
        folder.mkdir(exist_ok=True)
        suffix = ".safetensors" if name in MIXED else ""
        return folder / (name + ("-plain" if plain else "") + suffix)

    def write(self, build, name, isa=None):
        model, flags = self.cases[name]
        out = self.path(build, name)
        return aq(build, "quantize", model, out, *flags, "--quiet", "--overwrite",
                  *(["--isa", isa] if isa else []))

    def write_plain(self, build, name):
        return aq(build, "dequantize", self.path(HOST, name), self.path(build, name, True),
                  "--quiet", "--overwrite", "--dtype", "f16" if name in MIXED else "bf16")


def check_case(build, folders, name, isas):
    """[(what, None or problem)]: written alike, read and understood both ways."""
    ours, theirs, found = folders.path(HOST, name), folders.path(build, name), []
    for isa in isas:
        problem = folders.write(build, name, isa) or difference(ours, theirs)
        found.append((f"writes {name} by {isa}", problem))
    found.append((f"finds {name} intact", aq(build, "inspect", ours, "--verify", "--quiet")))
    found.append((f"is found intact, {name}",
                  None if found[0][1] else aq(HOST, "inspect", theirs, "--verify", "--quiet")))
    problem = folders.write_plain(build, name)
    found.append((f"dequantizes {name}", problem or difference(
        folders.path(HOST, name, True), folders.path(build, name, True))))
    return found


def build_tool(build, pool):
    """The tool on top of the objects that the C tests of this build have; a job, whose result is None
    or the problem."""
    variant = run.VARIANTS[1] if build is HOST else build
    jobs = run.start_objects(variant, pool)

    def link():
        objects, problems = run.finish_objects(variant, jobs)
        if problems:
            return "\n".join(output for _, output in problems)
        target = build.tool()
        target.parent.mkdir(parents=True, exist_ok=True)
        source = target.parent / "aq.c"
        source.write_text((TOP / "examples/aq.c").read_text(encoding="utf-8").replace(
            "#define ARROWQUANT_IMPLEMENTATION\n", "\n"), encoding="utf-8")
        status, output = run.build_once(
            [build.compiler, *build.flags, "-I", TOP / "examples", source, *objects, "-o", target,
             *LIBS], target, [source, *objects])
        if status != 0:
            return "aq does not compile:\n" + "\n".join(output.splitlines()[:40])
        return groups.compile_program(build, objects, groups.Machine(build, "").path)
    return link


def kernels_of(build):
    """The kernels in use, those usable, and a problem or None."""
    status, output = run.run([*build.runner, build.tool(), "inspect", "--cpu", "--json"], 60)
    try:
        cpu = json.loads(output[output.index('{"cpu"'):])["cpu"]  # behind an emulator's warnings
    except (ValueError, KeyError):
        return None, [], f"exit status {status}: {output}"
    if build.isa and cpu["isa"] != build.isa:
        return cpu["isa"], cpu["usable"], f"chose {cpu['isa']}, not {build.isa}"
    return cpu["isa"], cpu["usable"], None


def count(tally, build, results):
    for what, problem in results:
        if problem:
            tally.fail(f"{build.key}: {what}", problem)
        else:
            tally.passed += 1


def check_files(tally, builds, jobs, quick):
    blocks = 2 if quick else 100
    (BUILD / "cross").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="files-", dir=BUILD / "cross") as top, \
            concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        folders = Folders(pathlib.Path(top))
        usable = [build for build in [HOST, *builds] if not build.missing]
        links = [build_tool(build, pool) for build in usable]
        made = {build: link() for build, link in zip(usable, links)}
        problems = [made[HOST]] if made[HOST] else [
            folders.write(HOST, name) or folders.write_plain(HOST, name) for name in folders.cases]
        reference, problem = groups.Machine(HOST, "scalar").run(0, blocks, EMULATED_SECONDS)
        problems.append(problem)
        count(tally, HOST, [("writes the reference", problem) for problem in problems])
        for build in builds if not any(problems) else []:
            begin = time.monotonic()
            if build.missing or made[build]:
                count(tally, build, [("builds", made[build])] if not build.missing else [])
                continue
            isa, isas, problem = kernels_of(build)
            results = [("chooses its kernels", problem)]
            for found in pool.map(lambda name: check_case(build, folders, name, isas), folders.cases):
                results += found
            results += groups.check_build(build, isas, blocks, reference)
            count(tally, build, results)
            good = sum(1 for _, problem in results if not problem)
            say(f"{build.key:20} {isa}: {good} of {len(results)} comparisons the same "
                f"({time.monotonic() - begin:.0f} s)")


# ---------------------------------------------------------------- what only compiles

def fused(compiler, flags, prefix, folder):
    """Instructions that multiply and add where results are decided; or the reason for none."""
    found, number = [], 0
    sources = sorted(source for room in EXACT_ROOMS for source in (TOP / "src" / room).glob("*.c")
                     if not source.stem.endswith("_linear"))  # those fuse on purpose
    for source in sources:
        target = folder / "kernel.o"
        status, output = run.run([compiler, *flags, "-c", source, "-o", target], 300)
        if status != 0:
            return None, output
        listing = run.run([prefix + "objdump", "-d", "--no-show-raw-insn", target], 60)[1]
        for line in listing.splitlines():
            words = line.split("\t")
            number += len(words) > 1
            if len(words) > 1 and ADDED.match(words[1].split(" ")[0]):
                found.append(f"{source.relative_to(TOP)}: {line.strip()}")
    return (found, None) if number > 1000 else (None, f"only {number} instructions seen")


def check_fused(tally, choices):
    for compiler, flags, prefix in choices:
        name = f"{compiler} {' '.join(flags)}"
        if shutil.which(compiler) is None or shutil.which(prefix + "objdump") is None:
            tally.skip(f"fused arithmetic: no {compiler} or no {prefix}objdump here")
            continue
        if not X86 and not prefix:
            tally.skip("fused arithmetic: this is no x86-64")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found, problem = fused(compiler, flags, prefix, pathlib.Path(folder))
        if problem or found:
            tally.fail(f"fused arithmetic, {name}", problem or "\n".join(found[:40]))
        else:
            tally.passed += 1
        say(f"{name}: {'not compiled' if problem else len(found)} fused")


def check_windows(tally):
    programs = [TOP / "examples/aq.c", *sorted(TOP.glob("examples/[!a]*.c"))]
    for compiler, flags, _ in WINDOWS:
        if shutil.which(compiler) is None:
            tally.skip(f"no {compiler} here", len(programs) + 2)
            continue
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for name in ("arrowquant", "arrowquant_simd"):
                source = folder / f"{name}.c"
                source.write_text(f'#define {name.upper()}_IMPLEMENTATION\n#include "{name}.h"\n')
                status, output = run.run([compiler, "-std=c99", "-O2", *flags, *WARNINGS, "-I", TOP,
                                          "-c", source, "-o", folder / "library.o"], 300)
                count(tally, Build(compiler, compiler, []),
                      [(f"compiles {name}.h", output if status else None)])
            for program in programs:
                status, output = run.run([compiler, *flags, "-I", TOP, program, "-o",
                                          folder / "program.exe"], 300)
                count(tally, Build(compiler, compiler, []),
                      [(f"builds {program.name}", output if status else None)])
        say(f"{compiler}: two headers, {len(programs)} programs")


# ---------------------------------------------------------------- all

def check(tally, word, jobs, quick):
    builds = [build for build in [*MACHINES, *FLAGS, *(FLAGS_X86 if X86 else [])]
              if word in build.key and (build.quick or not quick)]
    set_up(builds, quick)
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as aside:
        own = run.Tally()  # the emulated machine takes its time, and mostly one core
        beside = aside.submit(bare.check, own, word, jobs, quick)
        if builds:
            check_builds(tally, builds, word, jobs, quick)
        beside.result()
    tally.add(own)


def check_builds(tally, builds, word, jobs, quick):
    for tests, alike in itertools.groupby(builds, lambda build: build.tests):
        run.run_c_tests(tally, tests, jobs, list(alike))
    check_files(tally, builds, jobs, quick)
    if not word:
        check_fused(tally, FUSIBLE[:1] if quick else FUSIBLE)
    if not word and not quick:
        check_windows(tally)


def main():
    parser = argparse.ArgumentParser(description="Builds and runs the library in many ways.")
    parser.add_argument("--quick", action="store_true", help="only what `make test` runs")
    parser.add_argument("-k", metavar="WORD", default="", help="only builds whose name contains it")
    parser.add_argument("-j", metavar="N", type=int, default=os.cpu_count() or 2, help="jobs")
    options = parser.parse_args()
    begin = time.monotonic()
    tally = run.Tally()
    check(tally, options.k, options.j, options.quick)
    return run.report(tally, begin)


if __name__ == "__main__":
    sys.exit(main())
