#!/usr/bin/env python3
"""Compares what every machine makes of the same random groups of weights: `make test-groups`.

    tests/groups.py               10^8 groups of each (hours; begun again, it goes on where it was stopped)
    tests/groups.py --groups 1e6  so many
    tests/groups.py -k BUILD      only that one beside the reference: host-clang, avx512-emulated,
                                  aarch64, aarch64-clang, s390x or bare
    tests/groups.py -j N          N jobs at once (default: the number of cores)

tests/c/tool_groups.c quantizes and dequantizes them by the kernels of one ISA, and gives a checksum
for each block of 10,000. Here the blocks of all ISAs of this machine (gcc and clang), of AVX-512 by
SIMDe's intrinsics, of NEON and of a big-endian machine under qemu-user, and of AVX-512 on an emulated machine (a hundredth for
the last two, which are slow) are compared with those of the scalar kernels by gcc. `tests/cross.py` does so with 10^6 groups,
or with two blocks, of each of its builds. The last line is always `N passed, N failed, N skipped`.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import sys
import time

import bare
import run
from run import TOP, BUILD, LIBS, WARNINGS, say

SOURCE = TOP / "tests/c/tool_groups.c"
BLOCK = 10_000  # groups, and a few more
CHUNK = 20      # blocks of a job
LINE = re.compile(r"^(\d+) (\d+) ([0-9a-f]{8})$", re.M)


class Machine:
    """A program, the ISA it uses, and how it is run."""

    def __init__(self, build, isa):
        self.build, self.isa = build, isa
        self.share = 0.01 if build.runner and isa == "scalar" else 1.0  # of all groups
        self.name = f"{build.key} {isa}"
        self.path = BUILD / "groups" / build.key

    def run(self, first, count, seconds=None):
        """{block: (groups, checksum)}, and what went wrong."""
        status, output = run.run([*self.build.runner, self.path, self.isa, first, count], seconds)
        found = {int(block): (int(groups), crc) for block, groups, crc in LINE.findall(output)}
        if status != 0 or sorted(found) != list(range(first, first + count)):
            return found, f"exit status {status}: " + "\n".join(output.splitlines()[-5:])
        return found, None


class Bare(Machine):
    """The emulated machine for AVX-512."""

    def __init__(self, build, flat):
        super().__init__(build, "avx512")
        self.share = 0.01
        self.name, self.path, self.flat = f"Bochs {self.isa}", BUILD / "tests/bare/groups", flat

    def run(self, first, count, seconds=None):
        output = bare.boot(list(bare.MODELS)[0], self.flat, self.path, {
            "AQ_GROUPS": f"{self.isa} {first} {count}",
            "GLIBC_TUNABLES": "glibc.malloc.mmap_max=0"})
        found = {int(block): (int(groups), crc) for block, groups, crc in LINE.findall(output)}
        complete = sorted(found) == list(range(first, first + count))
        return found, None if complete else output[-2000:]


def compile_program(build, objects, target):
    """None, or what went wrong. What makes the weights must not be fused."""
    status, output = run.build_once(
        [build.compiler, *build.flags, *WARNINGS, "-ffp-contract=off", "-I", TOP / "tests/c",
         SOURCE, *objects, "-o", target, *LIBS], target,
        [SOURCE, *sorted((TOP / "tests/c").glob("*.h")), *run.headers_of_src(), *objects])
    return None if status == 0 else "\n".join(output.splitlines()[:40])


def machines_of(build, pool):
    """Those of a build, and what went wrong."""
    variant = run.VARIANTS[1] if build.key == "host" else build  # objects that there are
    objects, problems = run.finish_objects(variant, run.start_objects(variant, pool))
    machine = Machine(build, "scalar")
    problem = problems[0][1] if problems else compile_program(build, objects, machine.path)
    emulated = build.isa == "avx512"  # its other kernels are the host's
    found = [] if emulated else [machine]
    for isa in (["avx512"] if emulated else ["avx2", "avx512", "neon"]) if not problem else ():
        machine = Machine(build, isa)
        if not machine.run(0, 0)[1]:
            found.append(machine)
    return found, problem


def bare_machine(tally, build, pool):
    """As a list: none where it cannot be had."""
    reason = bare.set_up()
    if reason:
        tally.skip(reason)
        return []
    parts, problem = bare.objects(pool)
    flat, bad_loader = bare.loader()
    machine = Bare(build, flat)
    problem = problem or bad_loader or compile_program(build, parts, machine.path)
    if problem:
        tally.fail("bare machine", problem)
    return [] if problem else [machine]


def check_build(build, isas, count, reference):
    """[(what, None or problem)]: the first blocks by each ISA of a build of cross.py."""
    found = []
    for isa in isas:
        blocks, problem = Machine(build, isa).run(0, count, build.run_seconds)
        if not problem and blocks != reference:
            problem = f"{blocks}, not {reference}"
        found.append((f"quantizes random groups by {isa}", problem))
    return found


# ---------------------------------------------------------------- results, kept while the program is the same

class Results:
    def __init__(self, machine):
        name = machine.name.replace(" ", "-")
        self.path, self.blocks = BUILD / "groups" / (name + ".txt"), {}
        head = "program " + run.digest([machine.isa], [machine.path])
        if self.path.is_file():
            text = self.path.read_text()
            if text.startswith(head + "\n"):
                self.blocks = {int(b): (int(g), crc) for b, g, crc in LINE.findall(text)}
        if not self.blocks:
            self.path.write_text(head + "\n")

    def add(self, found):
        self.blocks.update(found)
        with open(self.path, "a") as file:
            file.writelines(f"{b} {g} {crc}\n" for b, (g, crc) in sorted(found.items()))


def chunks(results, goal):
    """(first, count) of the blocks that are missing."""
    missing = [block for block in range(goal) if block not in results.blocks]
    begin = 0
    for i in range(1, len(missing) + 1):
        if i == len(missing) or missing[i] != missing[i - 1] + 1 or i - begin == CHUNK:
            yield missing[begin], i - begin
            begin = i


def compare(tally, machine, results, reference, problems):
    same = [block for block, found in results.blocks.items() if reference.blocks.get(block) == found]
    groups = sum(results.blocks[block][0] for block in same)
    different = sorted(block for block, found in results.blocks.items()
                       if block in reference.blocks and reference.blocks[block] != found)
    problem = "\n".join(problems)
    if different:
        problem += f"\nblocks that differ: {different[:20]} of {len(different)}"
    if problem or not same:
        tally.fail(machine.name, problem or "nothing compared")
    else:
        tally.passed += 1
    say(f"{machine.name:24} {groups:,} groups the same, {len(different)} blocks differ")


def run_machines(tally, machines, groups, jobs):
    """Of all machines in turn, so that what is done so far can be compared at any time."""
    results = [Results(machine) for machine in machines]
    problems = [[] for _ in machines]
    todo = []
    for number, machine in enumerate(machines):
        goal = max(1, round(groups * machine.share / BLOCK))
        parts = list(chunks(results[number], goal))
        todo += [(i / len(parts), number, part) for i, part in enumerate(parts)]
    begin, done = time.monotonic(), 0

    def work(job):
        _, number, part = job
        return number, machines[number].run(*part)

    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        for number, (found, problem) in pool.map(work, sorted(todo)):
            results[number].add(found)
            problems[number] += [problem] if problem else []
            done += 1
            if done % max(1, len(todo) // 50) == 0:
                say(f"{done} of {len(todo)} parts ({time.monotonic() - begin:.0f} s)")
    for machine, own, problem in zip(machines, results, problems):
        compare(tally, machine, own, results[0], problem)


# ---------------------------------------------------------------- all

def all_machines(tally, key, jobs):
    """Those of the build with that key, or of all, behind the reference."""
    import cross  # which compares a few blocks with the functions above
    clang = cross.Build("host-clang", "clang", ["-std=c99", "-O2"])
    builds = [clang, cross.AVX512, *(build for build in cross.MACHINES
                       if build.key in ("aarch64", "aarch64-clang", "s390x"))]
    builds = [cross.HOST, *(build for build in builds if key in ("", build.key))]
    cross.set_up(builds, True)
    machines = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        for build in builds:
            found, problem = ([], None) if build.missing else machines_of(build, pool)
            machines += found
            if build.missing:
                tally.skip(build.missing)
            elif problem:
                tally.fail(build.key, problem)
        if key in ("", "bare") and not bare.has_natively():
            build = cross.Build("bare", "gcc", ["-std=c99", "-O2", "-static"])
            machines += bare_machine(tally, build, pool)
    return machines


def main():
    parser = argparse.ArgumentParser(description="Compares random groups on many machines.")
    parser.add_argument("--groups", type=float, default=1e8)
    parser.add_argument("-k", metavar="BUILD", default="", help="only that one beside the reference")
    parser.add_argument("-j", metavar="N", type=int, default=os.cpu_count() or 2, help="jobs")
    options = parser.parse_args()
    begin = time.monotonic()
    tally = run.Tally()
    (BUILD / "groups").mkdir(parents=True, exist_ok=True)
    machines = all_machines(tally, options.k, options.j)
    if not tally.failed:
        run_machines(tally, machines, options.groups, options.j)
    return run.report(tally, begin)


if __name__ == "__main__":
    sys.exit(main())
