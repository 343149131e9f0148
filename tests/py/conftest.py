"""Fixtures that all Python tests share. They build what is missing, once for all workers."""
import concurrent.futures
import contextlib
import fcntl
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
BUILD = REPO / "build"
# Another build of the tool, whose objects and test programs lie beside it: tests/coverage.py's.
OTHER = pathlib.Path(os.environ["AQ_TOOL"]) if os.environ.get("AQ_TOOL") else None
MADE = OTHER.parent if OTHER else BUILD / "tools"  # where tests put their programs
sys.path.append(str(REPO / "tests"))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # pytest has a worker a core
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
LIBS = ["-lpthread", "-lm"]


@contextlib.contextmanager
def held(name):
    """One process at a time; the system lets go when the process dies."""
    BUILD.mkdir(exist_ok=True)
    with open(BUILD / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def call(command, seconds=280, **options):
    """Runs a command that must succeed; its standard output."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", timeout=seconds, **options)
    assert done.returncode == 0, (f"{' '.join(str(word) for word in command)}\n"
                                  f"exit status {done.returncode}\n"
                                  + "\n".join((done.stdout + done.stderr).splitlines()[:60]))
    return done.stdout


def need(program):
    if shutil.which(program) is None:
        pytest.skip(f"no {program} here")


def stale(target, sources):
    return not target.is_file() or any(
        source.stat().st_mtime >= target.stat().st_mtime for source in sources)


@pytest.fixture(scope="session")
def repo():
    """The top level of the project."""
    return REPO


@pytest.fixture(scope="session")
def digits():
    """The bundled diffusion model."""
    return REPO / "tests/fixtures/digits-dit"


def library_objects(key="gcc-c99"):
    """The built headers as objects, internals extern: those that the C tests are linked with."""
    import run
    if OTHER:
        return [*OTHER.parent.glob("*-*.o"), "-lgcov"]
    variant = next(variant for variant in run.VARIANTS if variant.key == key)
    with held(f"objects-{key}"), concurrent.futures.ThreadPoolExecutor(1) as pool:
        objects, problems = run.finish_objects(variant, run.start_objects(variant, pool))
    assert not problems, problems
    return objects


def plain_object(*command):
    """The built header, internals static, as that compiler makes it without an option; once for all."""
    import run
    folder = BUILD / "plain" / "-".join(word.lstrip("-") for word in command)
    source, target = folder / "library.c", folder / "library.o"
    with held(f"plain-{folder.name}"):
        folder.mkdir(parents=True, exist_ok=True)
        source.write_text('#define ARROWQUANT_IMPLEMENTATION\n#include "arrowquant.h"\n')
        status, output = run.build_once([*command, *WARNINGS, "-I", REPO, "-c", source, "-o", target],
                                        target, [source, REPO / "arrowquant.h"])
    assert status == 0, output
    return target


def link_example(name, target, *flags, compiler="gcc", objects=None):
    """examples/`name` without the library of its own, linked with its objects: seconds instead of a
    minute. test_builds.py and test_install.py compile each of them as it stands."""
    source = REPO / "examples" / name
    text = source.read_text(encoding="utf-8")
    assert text.count("#define ARROWQUANT_IMPLEMENTATION\n") == 1
    copy = target.parent / f"{target.name}-{name}"
    copy.write_text(text.replace("#define ARROWQUANT_IMPLEMENTATION\n", "\n"), encoding="utf-8")
    call([compiler, *flags, "-I", REPO, "-I", REPO / "examples", copy,
          *(objects or library_objects()), "-o", target, *LIBS])
    return target


@pytest.fixture(scope="session")
def tool():
    """tool(name): the program made from tests/c/tool_<name>.c and the built header."""
    def build(name):
        if OTHER:
            return OTHER.parent / f"tool_{name}"
        source = REPO / f"tests/c/tool_{name}.c"
        target = MADE / name
        inputs = [source, REPO / "arrowquant.h", *(REPO / "tests/c").glob("*.h")]
        own = "#define ARROWQUANT_MALLOC" in source.read_text()  # then it holds the library itself
        with held("tools"):
            if stale(target, inputs):
                target.parent.mkdir(exist_ok=True)
                parts = ["-DAQ_TEST_BUNDLE"] if own else library_objects()
                call(["gcc", "-std=c99", "-O2", *WARNINGS, "-I", REPO / "tests/c", "-I", REPO,
                      source, *parts, "-o", target, *LIBS])
        return target
    return build


@pytest.fixture(scope="session")
def aq():
    """The command-line tool, or another build of it that AQ_TOOL names."""
    if OTHER:
        return OTHER
    with held("aq"):
        call(["make", "-s", "aq"], cwd=REPO)
    return BUILD / "aq"


def pytest_terminal_summary(terminalreporter):
    """What the tests counted: their property "figure", which tests/run.py prints as well."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "figure" and report.when == "call":
                    terminalreporter.write_line(f"  {value}")


def built_for(interpreter):
    """(include folder, suffix, flags) of an extension: that of the stable ABI, which a free-threaded
    Python lacks, or of another interpreter's own."""
    if interpreter is None and sysconfig.get_config_var("Py_GIL_DISABLED"):
        interpreter = sys.executable
    if interpreter is None:
        return sysconfig.get_path("include"), ".abi3.so", ["-DPy_LIMITED_API=0x030B0000"]
    told = call([interpreter, "-c", "import sysconfig as s; print(s.get_path('include'), "
                 "s.get_config_var('EXT_SUFFIX'), sep='\\n')"]).splitlines()
    return told[0], told[1], []


def build_package(folder, *flags, compiler="gcc", interpreter=None):
    """The Python package in build/`folder`: its files linked, the extension compiled for every
    CPython from 3.11 on, or for `interpreter` alone."""
    include, suffix, abi = built_for(interpreter)
    target = BUILD / folder
    module = target / f"arrowquant/_core{suffix}"
    with held(folder):
        for name in ("arrowquant", "arrow_quant_v2"):
            (target / name).mkdir(parents=True, exist_ok=True)
            for source in (REPO / "python" / name).glob("*.py*"):
                link = target / name / source.name
                if not link.is_symlink():
                    link.symlink_to(source)
        if stale(module, [REPO / "python/_core.c", REPO / "arrowquant.h", REPO / "examples/aq.c"]):
            call([compiler, "-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall",
                  "-Wextra", "-Wshadow", "-Wconversion", "-Werror", *abi, *flags, "-isystem", include,
                  REPO / "python/_core.c", "-o", f"{module}.new", *LIBS])
            os.replace(f"{module}.new", module)
    return target


@pytest.fixture(scope="session")
def package():
    """The folder that holds the built Python package; it is on sys.path from then on."""
    if sys.version_info < (3, 11):
        pytest.skip("the Python module needs CPython 3.11")
    if not (pathlib.Path(sysconfig.get_path("include")) / "Python.h").is_file():
        pytest.skip("no Python.h here (python3-dev)")
    target = build_package("python")
    if str(target) not in sys.path:
        sys.path.insert(0, str(target))
    return target


@pytest.fixture(scope="session")
def module(package):
    """The module arrowquant."""
    import arrowquant
    assert arrowquant.__file__.startswith(str(package))
    return arrowquant


@pytest.fixture
def python(package):
    """python(text, *arguments): runs a program with the package; its standard output."""
    def run(text, *arguments, interpreter=sys.executable, environment=None, **options):
        clean = {key: value for key, value in os.environ.items()
                 if not key.startswith("ARROW_QUANT_")}
        return call([interpreter, "-c", text, *arguments],
                    env={**clean, "PYTHONPATH": str(package), **(environment or {})}, **options)
    return run
