#!/usr/bin/env python3
"""Runs the kernels for instructions that few machines have, AVX-512 and VNNI, on an emulated one.

    tests/bare.py            every model and program
    tests/bare.py --quick    what `make test` runs
    tests/bare.py -k WORD    only programs whose name contains WORD

Bochs emulates the processors, without an operating system: tests/bare/ boots one static program and
is the system that it sees. The objects are those of the build src-gcc-c99, except for the two files
that convert to halves (tests/bare/halves.h says why). What cannot be had here is skipped. The last
line is always `N passed, N failed, N skipped`.
"""
import argparse
import concurrent.futures
import os
import pathlib
import platform
import re
import shutil
import struct
import sys
import tempfile
import time

import run
from run import TOP, BUILD, LIBS, WARNINGS, say

BARE = TOP / "tests/bare"
SECONDS = 1200  # some 20 s of a free core
MODELS = {"corei7_icelake_u": "avx512 vnni", "corei7_skylake_x": "avx512 avx2"}  # table and its dots
# C tests, and those parts of them that call kernels; none: all parts.
PROGRAMS = {
    "test_simd": "ranges fits codes sums conversions dots every_half whole_path kernels_that_run contexts",
    "test_linear": "kernels_match_the_scalar_ones repacked_layers",
}
GROUPS = "400"
LOADER = ["-m64", "-O2", "-ffreestanding", "-fno-pic", "-fno-pie", "-mgeneral-regs-only",
          "-mno-red-zone", "-fno-stack-protector", "-fcf-protection=none", "-Wall", "-Wextra",
          "-fno-asynchronous-unwind-tables", "-nostdlib", "-static", "-no-pie",
          f"-Wl,-T,{BARE}/link.ld", "-Wl,--build-id=none"]
MACHINE = """config_interface: textconfig
display_library: rfb, options="timeout=0"
sound: driver=dummy
cpu: model={model}, count=1, ips=200000000, reset_on_triple_fault=0
memory: guest=512, host=512
romimage: file=/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest
ata0-master: type=disk, path={disk}, mode=flat
boot: disk
port_e9_hack: enabled=1
clock: sync=none
log: {log}
panic: action=fatal
error: action=report
info: action=ignore
"""


def set_up():
    """None, or why nothing can be run."""
    if platform.machine() not in ("x86_64", "AMD64") or shutil.which("gcc") is None:
        return "AVX-512 on an emulated machine: needs gcc on x86-64"
    if shutil.which("bochs") is None:
        run.Packages().install("bochs", "bochs-term", "bochsbios", "vgabios")
    return None if shutil.which("bochs") else "AVX-512 on an emulated machine: no bochs here"


def has_natively():
    try:
        return "avx512_vnni" in pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def objects(pool):
    """Those of the library, and what went wrong."""
    variant = next(variant for variant in run.VARIANTS if not variant.bundle)
    found, problems = run.finish_objects(variant, run.start_objects(variant, pool))
    if problems:
        return found, problems[0][1]
    for source in sorted((TOP / "src/simd").glob("avx*_convert.c")):
        target = BUILD / "tests/bare" / (source.stem + ".o")
        command = [variant.compiler, *variant.flags, "-DAQ_LIB=extern", "-DAQ_SIMD_LIB=extern",
                   "-include", BARE / "halves.h", "-I", TOP, "-c", source, "-o", target]
        status, output = run.build_once(command, target, [source, BARE / "halves.h",
                                                          *run.headers_of_src()])
        if status != 0:
            return found, output
        found = [target if path.name == target.name else path for path in found]
    return found, None


def loader():
    target = BUILD / "tests/bare/loader"
    sources = [BARE / "boot.S", BARE / "system.c"]
    status, output = run.build_once(["gcc", *LOADER, *sources, "-o", target], target,
                                    [*sources, BARE / "link.ld"])
    flat = target.with_suffix(".bin")
    if status == 0:
        status, output = run.run(["objcopy", "-O", "binary", target, flat], 60)
    return flat, None if status == 0 else output


def program(name, parts):
    """A C test as one static file, and what went wrong."""
    source, target = TOP / "tests/c" / (name + ".c"), BUILD / "tests/bare" / name
    inputs = [source, *sorted((TOP / "tests/c").glob("*.h")), *run.headers_of_src(), *parts]
    status, output = run.build_once(["gcc", "-std=c99", "-O2", "-static", *WARNINGS, "-I",
                                     TOP / "tests/c", source, *parts, "-o", target, *LIBS],
                                    target, inputs)
    return target, None if status == 0 else "\n".join(output.splitlines()[:40])


def write_disk(path, flat, binary, variables):
    """As tests/bare/system.c reads it."""
    texts = [binary.name, *(f"{key}={value}" for key, value in variables.items())]
    data = binary.read_bytes()
    head = struct.pack("<3Q", len(data), 1, len(variables))
    head += b"".join(text.encode() + b"\0" for text in texts)
    image = flat.read_bytes().ljust(64 * 512, b"\0") + head.ljust(512, b"\0") + data
    track = 16 * 63 * 512  # whole cylinders
    path.write_bytes(image.ljust(-(-len(image) // track) * track, b"\0"))


def boot(model, flat, binary, variables):
    """What a program says on that machine, and what was seen of an end."""
    with tempfile.TemporaryDirectory(prefix="aq-bare-") as folder:
        folder = pathlib.Path(folder)
        write_disk(folder / "disk", flat, binary, variables)
        (folder / "machine").write_text(MACHINE.format(model=model, disk=folder / "disk",
                                                       log=folder / "log"))
        (folder / "commands").write_text("c\n")  # Debian's build has a debugger, which waits
        _, output = run.run(["bochs", "-q", "-f", folder / "machine", "-rc", folder / "commands"],
                            SECONDS, cwd=folder)
        if "bare: exit status" not in output and (folder / "log").is_file():
            output += (folder / "log").read_text(errors="replace")
    return output


def check_program(tally, model, flat, name, parts):
    begin = time.monotonic()
    binary, problem = program(name, parts)
    if problem:
        tally.fail(f"{model}: {name} does not compile", problem)
        return
    output = boot(model, flat, binary, {
        "AQ_TEST_BRIEF": "1", "AQ_SIMD_GROUPS": GROUPS, "AQ_TEST_ONLY": PROGRAMS[name],
        "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0"})
    counts = re.search(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", output, re.M)
    wanted = len(PROGRAMS[name].split())
    seen = re.search(r"^kernels compared: (.*)$", output, re.M)
    problem = None
    if not counts or int(counts.group(2)) or int(counts.group(1)) != wanted:
        problem = f"{wanted} passes wanted\n" + "\n".join(output.splitlines()[-40:])
    elif name == "test_simd" and (not seen or not seen.group(1).endswith(MODELS[model])):
        problem = f"not the kernels {MODELS[model]}: {seen.group(0) if seen else output}"
    if problem:
        tally.fail(f"{model}: {name}", problem)
    else:
        tally.passed += wanted
    say(f"{model:20} {name}: {'failed' if problem else f'{wanted} passed'} "
        f"({time.monotonic() - begin:.0f} s)")


def check(tally, word, jobs, quick):
    programs = [name for name in PROGRAMS if word in name or word in "bare"]
    if not programs:
        return
    if quick and has_natively():
        say("AVX-512 and VNNI are this machine's own: not emulated")
        return
    reason = set_up()
    if reason:
        tally.skip(reason, len(programs))
        return
    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        parts, problem = objects(pool)
        flat, bad_loader = loader()
        if problem or bad_loader:
            tally.fail("bare machine", problem or bad_loader)
            return
        models = list(MODELS)[:1] if quick else list(MODELS)
        list(pool.map(lambda job: check_program(tally, job[0], flat, job[1], parts),
                      [(model, name) for model in models for name in programs]))


def main():
    parser = argparse.ArgumentParser(description="Runs the AVX-512 kernels on an emulated machine.")
    parser.add_argument("--quick", action="store_true", help="only what `make test` runs")
    parser.add_argument("-k", metavar="WORD", default="", help="only programs whose name contains it")
    parser.add_argument("-j", metavar="N", type=int, default=os.cpu_count() or 2, help="jobs")
    options = parser.parse_args()
    begin = time.monotonic()
    tally = run.Tally()
    check(tally, options.k, options.j, options.quick)
    return run.report(tally, begin)


if __name__ == "__main__":
    sys.exit(main())
