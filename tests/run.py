#!/usr/bin/env python3
"""Runs every test: `make test`.

    tests/run.py                    all
    tests/run.py -k WORD            only tests whose name contains WORD
    tests/run.py --only c|cross|py  only the C tests, those of cross.py, the Python tests
    tests/run.py -j N               N jobs at once (default: the number of cores)
    tests/run.py --set-up           only set up what they need

Sets up what is missing first: Debian packages (when it may), and a Python environment in
build/venv. What cannot be had is skipped, and the reason is printed. C tests are compiled in five
ways: against src/ file by file, and against the built header as C and C++ with gcc and clang, with
ASan, UBSan and arenas without slack in one of them; cross.py adds other machines. The last line is always
`N passed, N failed, N skipped`.
"""
import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import xml.etree.ElementTree

TOP = pathlib.Path(__file__).resolve().parent.parent
BUILD = TOP / "build"
VENV = BUILD / "venv"
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
LIBS = ["-lpthread", "-lm"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
COMPILE_SECONDS, RUN_SECONDS, PYTHON_SECONDS = 600, 240, 3000


class Variant:
    """One way to compile the C tests."""

    def __init__(self, key, compiler, flags, bundle, run_seconds=RUN_SECONDS):
        self.key, self.compiler, self.flags, self.bundle = key, compiler, flags, bundle
        self.run_seconds = run_seconds
        self.runner, self.environment = [], {}  # what stands before a program, what it is told
        self.missing = None  # why it cannot be used here
        self.inputs = []     # files beside the library that its objects are made of


VARIANTS = [
    Variant("src-gcc-c99", "gcc", ["-std=c99", "-O2"], False),
    Variant("gcc-c99", "gcc", ["-std=c99", "-O2", "-fPIC"], True),  # Python tests load it as well
    Variant("gcc-cxx11", "g++", ["-x", "c++", "-std=c++11", "-O1"], True),
    # Each piece of an arena is an allocation of its own: it can fail, and what runs over it is seen.
    Variant("clang-c99-sanitized", "clang", ["-std=c99", "-O1", "-g1", *SANITIZE,
                                             "-DAQ_ARENA_FIRST=16u", "-DAQ_ARENA_LARGEST=16u"], True,
            2 * RUN_SECONDS),
    Variant("clang-cxx11", "clang++", ["-x", "c++", "-std=c++11", "-O1"], True),
]


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.failures = []  # (name, text)
        self.skips = {}     # reason -> how many

    def fail(self, name, text, count=1):
        self.failed += count
        self.failures.append((name, text))

    def skip(self, reason, count=1):
        self.skipped += count
        self.skips[reason] = self.skips.get(reason, 0) + count

    def add(self, other):
        self.passed += other.passed
        self.failed += other.failed
        self.failures += other.failures
        for reason, count in other.skips.items():
            self.skip(reason, count)


def say(*words):
    print(*words, flush=True)


def run(command, seconds, **options):
    """Exit status and output; a timeout is a failure like any other."""
    try:
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds,
                              **options)
        return done.returncode, done.stdout.decode("utf-8", "replace")
    except subprocess.TimeoutExpired as late:
        return 124, (late.stdout or b"").decode("utf-8", "replace") + f"\nstopped after {seconds} s"
    except OSError as problem:
        return 127, str(problem)


# ---------------------------------------------------------------- set-up

def compiles(command, source):
    """Whether `command` turns `source` into a program."""
    if shutil.which(command[0]) is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "probe.c"
        path.write_text(source)
        return run([*command, path, "-o", pathlib.Path(folder) / "probe"], 60)[0] == 0


def has_sanitizer():
    return compiles(["clang", *SANITIZE], "int main(void) { return 0; }\n")


def has_arm():
    return compiles(["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-c"],
                    "#include <string.h>\nint x;\n")


def sanitizer_package():
    version = re.search(r"version (\d+)", run(["clang", "--version"], 60)[1])
    return f"libclang-rt-{version.group(1)}-dev" if version else "clang"


def has_venv_module():
    return run([sys.executable, "-c", "import venv, ensurepip"], 60)[0] == 0


class Packages:
    """apt-get, where there is one and we may use it."""

    def __init__(self):
        self.prefix, self.updated = None, False
        if shutil.which("apt-get"):
            if os.geteuid() == 0:
                self.prefix = []
            elif shutil.which("sudo") and run(["sudo", "-n", "true"], 30)[0] == 0:
                self.prefix = ["sudo", "-n"]

    def install(self, *names):
        if self.prefix is None:
            return
        command = [*self.prefix, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]
        if not self.updated:
            run([*command, "update"], 300)
            self.updated = True
        say("installing", *names)
        run([*command, "install", "-y", "--no-install-recommends", *names], 900)


def set_up_compilers():
    packages = Packages()
    if not (shutil.which("gcc") and shutil.which("g++") and shutil.which("nm")):
        packages.install("gcc", "g++", "binutils", "libc6-dev")
    if not (shutil.which("clang") and shutil.which("clang++")):
        packages.install("clang")
    if shutil.which("clang") and not has_sanitizer():
        packages.install(sanitizer_package())
    if not has_arm():
        packages.install("gcc-arm-none-eabi", "libnewlib-arm-none-eabi")
    if not shutil.which("qemu-system-arm"):
        packages.install("qemu-system-arm")
    if not has_venv_module():
        packages.install("python3-venv")
    if not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file():
        packages.install("python3-dev")
    for variant in VARIANTS:
        if shutil.which(variant.compiler) is None:
            variant.missing = f"no {variant.compiler} here"
    for variant in VARIANTS:
        if SANITIZE[0] in variant.flags and not variant.missing and not has_sanitizer():
            variant.missing = "clang has no sanitizer runtime here"


def set_up_python():
    """The interpreter of build/venv, or None and the reason."""
    python = VENV / "bin" / "python"
    wanted = (TOP / "tests/py/requirements.txt").read_text()
    mark = VENV / "requirements.txt"
    if mark.is_file() and mark.read_text() == wanted and run([python, "-c", ""], 60)[0] == 0:
        return python, None
    say("setting up build/venv")
    shutil.rmtree(VENV, ignore_errors=True)
    status, output = run([sys.executable, "-m", "venv", VENV], 300)
    if status != 0:
        return None, "no Python environment (python3-venv): " + last_line(output)
    status, output = run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
                          "-r", TOP / "tests/py/requirements.txt"], 600)
    if status != 0:
        return None, "pip could not install tests/py/requirements.txt: " + last_line(output)
    mark.write_text(wanted)
    return python, None


def install(python, name, mark, seconds, *options):
    """What a file of requirements names, once; the reason when it cannot."""
    wanted = (TOP / name).read_text()
    if mark.is_file() and mark.read_text() == wanted:
        return None
    say(f"installing {name}")
    status, output = run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options,
                          "-r", TOP / name], seconds)
    if status != 0:
        return f"pip could not install {name}: " + last_line(output)
    mark.write_text(wanted)
    return None


def set_up_heavy(python):
    """Into the environment of requirements.txt."""
    return install(python, "tests/py/requirements-heavy.txt", VENV / "requirements-heavy.txt", 1800)


def set_up_environment():
    """(interpreter or None, why; what of the heavy ones is not there, or None)."""
    python, reason = set_up_python()
    return python, reason, set_up_heavy(python) if python else None


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


# ---------------------------------------------------------------- C tests

def digest(command, files):
    state = hashlib.sha256("\0".join(str(word) for word in command).encode())
    for path in files:
        state.update(path.read_bytes())
    return state.hexdigest()


def build_once(command, target, files):
    """Runs `command`, which makes `target` from `files`, unless that has been done."""
    key = target.parent / (target.name + ".key")
    value = digest(command, files)
    if target.is_file() and key.is_file() and key.read_text() == value:
        return 0, ""
    target.parent.mkdir(parents=True, exist_ok=True)
    status, output = run(command, COMPILE_SECONDS)
    if status == 0:
        key.write_text(value)
    return status, output


def headers_of_src():
    return sorted((TOP / "src").rglob("*.h"))


def library_sources(variant, folder):
    """[(source, object, flags, inputs)] of the library: src/ file by file, or the built headers.
    Internals are extern, so that the tests reach them; of the kernels only once."""
    extern = ["-DAQ_LIB=extern", "-DAQ_SIMD_LIB=extern"]
    if not variant.bundle:
        return [(source, folder / source.relative_to(TOP / "src").with_suffix(".o"), extern,
                 headers_of_src()) for source in sorted((TOP / "src").rglob("*.c"))]
    found = []
    for name, switch, flags in [("arrowquant", "ARROWQUANT_IMPLEMENTATION", extern),
                                ("arrowquant_simd", "ARROWQUANT_SIMD_IMPLEMENTATION", [])]:
        source, text = folder / (name + ".c"), f'#define {switch}\n#include "{name}.h"\n'
        if not source.is_file() or source.read_text() != text:
            source.parent.mkdir(parents=True, exist_ok=True)
            source.write_text(text)
        found.append((source, folder / (name + ".o"), flags, [TOP / (name + ".h")]))
    return found


def start_objects(variant, pool):
    """The library begins to be compiled: [(source, object, job)]."""
    folder = BUILD / "tests" / variant.key / "library"
    jobs = []
    for source, target, flags, inputs in library_sources(variant, folder):
        command = [variant.compiler, *variant.flags, *WARNINGS, *flags, "-I", TOP, "-c", source,
                   "-o", target]
        jobs.append((source, target, pool.submit(build_once, command, target,
                                                    [source, *inputs, *variant.inputs])))
    return jobs


def finish_objects(variant, jobs):
    """The objects of the library, and what went wrong: (name, output)."""
    problems = [(f"{variant.key}: {source.name}", job.result()[1])
                for source, _, job in jobs if job.result()[0] != 0]
    return [target for _, target, _ in jobs], problems


def run_c_test(variant, source, objects):
    """(passed, failed, skipped, output) of one test program."""
    target = BUILD / "tests" / variant.key / source.stem
    inputs = [source, *sorted((TOP / "tests/c").glob("*.h")), *headers_of_src(), *objects]
    command = [variant.compiler, *variant.flags, *WARNINGS, "-I", TOP / "tests/c", source]
    if "c++" in variant.flags:
        command += ["-x", "none"]
    command += objects
    status, output = build_once([*command, "-o", target, *LIBS], target, inputs)
    if status != 0:
        return 0, 1, 0, "does not compile:\n" + "\n".join(output.splitlines()[:40])
    with tempfile.TemporaryDirectory(prefix="aq-test-") as folder:
        status, output = run([*variant.runner, target], variant.run_seconds, cwd=TOP,
                             env={**os.environ, **variant.environment, "TMPDIR": folder})
    counts = re.search(r"^(\d+) passed, (\d+) failed, (\d+) skipped$", last_line(output))
    if not counts:
        return 0, 1, 0, f"exit status {status}, no result:\n" + "\n".join(output.splitlines()[-40:])
    passed, failed, skipped = (int(number) for number in counts.groups())
    if status != 0 and failed == 0:
        failed = 1
    return passed, failed, skipped, output


def run_c_tests(tally, word, jobs, variants):
    tests = [path for path in sorted((TOP / "tests/c").glob("test_*.c")) if word in path.stem]
    with concurrent.futures.ThreadPoolExecutor(max_workers=jobs) as pool:
        # All at first: each header is one long compilation, and no core waits for the end of it.
        started = {variant.key: start_objects(variant, pool)
                   for variant in variants if tests and not variant.missing}
        for variant in variants if tests else []:
            if variant.missing:
                tally.skip(f"{variant.key}: {variant.missing}", len(tests))
                continue
            begin = time.monotonic()
            objects, problems = finish_objects(variant, started[variant.key])
            for name, output in problems:
                tally.fail(name, "does not compile:\n" + "\n".join(output.splitlines()[:40]))
            if problems:
                continue
            sums = [0, 0, 0]
            results = pool.map(lambda source: run_c_test(variant, source, objects), tests)
            for source, (passed, failed, skipped, output) in zip(tests, results):
                sums = [a + b for a, b in zip(sums, (passed, failed, skipped))]
                tally.passed += passed
                for figure in re.findall(r"^figure: (.+)$", output, re.M):
                    say(f"  {source.stem}: {figure}")
                if failed:
                    tally.fail(f"{variant.key}: {source.stem}", output.strip(), failed)
                if skipped:
                    why = re.search(r"^skipped: (.+)$", output, re.M)
                    tally.skip(f"{variant.key}: {source.stem}: "
                               f"{why.group(1) if why else 'no reason given'}", skipped)
            say(f"{variant.key:20} {len(tests)} programs, {sums[0]} passed, {sums[1]} failed, "
                f"{sums[2]} skipped ({time.monotonic() - begin:.0f} s)")


# ---------------------------------------------------------------- Python tests

def run_python_tests(tally, word, jobs, environment):
    python, reason, lacking = environment
    if python is None:
        tally.skip(f"Python tests: {reason}")
        return
    if lacking:
        tally.skip(lacking)
    report = BUILD / "pytest.xml"
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", TOP / "tests/py", "-q", "--no-header", "--tb=short",
               "-p", "no:cacheprovider", "-n", str(jobs), "--dist=worksteal", "--timeout=300",
               f"--junitxml={report}", "-o", "junit_family=xunit1", "--rootdir", TOP]
    if word:
        command += ["-k", word]
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                               errors="replace", cwd=TOP)
    limit, tail = threading.Timer(PYTHON_SECONDS, process.kill), []
    limit.start()
    for line in process.stdout:
        tail = (tail + [line.rstrip()])[-40:]
        if re.match(r"^[.sFExX]+ *\[ *\d+%\]", line):
            say("pytest " + line.rstrip())
    status = process.wait()
    limit.cancel()
    if status == 5:
        return
    if not report.is_file():
        tally.fail("pytest", f"exit status {status}:\n" + "\n".join(tail))
        return
    count_python_tests(tally, report)
    if status != 0 and not tally.failures:
        tally.fail("pytest", f"exit status {status}:\n" + "\n".join(tail))


def count_python_tests(tally, report):
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = case.get("classname", "").replace("tests.py.", "") + "::" + case.get("name", "")
        for figure in case.iter("property"):
            if figure.get("name") == "figure":
                say("  " + figure.get("value"))
        problem = case.find("failure")
        problem = case.find("error") if problem is None else problem
        skipped = case.find("skipped")
        if problem is not None:
            tally.fail(name, problem.text or problem.get("message") or "")
        elif skipped is not None:
            tally.skip(skipped.get("message") or "no reason given")
        else:
            tally.passed += 1


# ---------------------------------------------------------------- all

def report(tally, begin):
    """Prints what went wrong, what was skipped, and the counts; the exit status."""
    for name, text in tally.failures:
        say(f"\nFAILED {name}")
        for line in text.splitlines():
            say("    " + line)
    for reason, count in tally.skips.items():
        say(f"skipped {count}: {reason}")
    say(f"{time.monotonic() - begin:.0f} s")
    say(f"{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped")
    return 1 if tally.failed or not tally.passed else 0


def main():
    parser = argparse.ArgumentParser(description="Runs every test.")
    parser.add_argument("-k", metavar="WORD", default="", help="only tests whose name contains it")
    parser.add_argument("--only", choices=["c", "cross", "py"],
                        help="only the C tests, those for other machines, or the Python tests")
    parser.add_argument("-j", metavar="N", type=int, default=os.cpu_count() or 2, help="jobs")
    parser.add_argument("--set-up", action="store_true", help="only set up what they need")
    options = parser.parse_args()
    begin = time.monotonic()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    tally = Tally()
    set_up_compilers()
    if options.set_up:
        python, reason, lacking = set_up_environment()
        reason = reason or lacking
        say(reason or "ready")
        return 1 if reason else 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as aside:  # a download, mostly
        environment = aside.submit(set_up_environment) if options.only in (None, "py") else None
        if options.only in (None, "c"):
            run_c_tests(tally, options.k, options.j, VARIANTS)
        if options.only in (None, "cross"):
            import cross
            cross.check(tally, options.k, options.j, True)
        if environment:
            run_python_tests(tally, options.k, options.j, environment.result())
    return report(tally, begin)


if __name__ == "__main__":
    sys.exit(main())
