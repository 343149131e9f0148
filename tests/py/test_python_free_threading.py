"""The module under free-threaded CPython: a build for that version alone, which leaves the GIL off, and the
same calls at once in many threads. AQ_FREE_THREADED names an interpreter; else one is looked for."""
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from conftest import REPO, build_package, call
from test_python_memory import LEAKS, THREADS
from test_python_packaging import clone  # noqa: F401  (a fixture)

PROBE = "import sysconfig; print(bool(sysconfig.get_config_var('Py_GIL_DISABLED')))"


@pytest.fixture(scope="module")
def interpreter():
    found = [os.environ.get("AQ_FREE_THREADED"),
             *(shutil.which(f"python3.{minor}t") for minor in range(19, 12, -1)),
             *map(str, sorted((pathlib.Path.home() / ".pyenv/versions").glob("3.*t/bin/python"))[::-1])]
    for path in filter(None, found):
        done = subprocess.run([path, "-c", PROBE], capture_output=True, text=True)
        if done.stdout == "True\n":
            return path
    pytest.skip("no free-threaded CPython here (AQ_FREE_THREADED=… names one)")


@pytest.fixture(scope="module")
def free(interpreter):
    """free(text, *arguments): runs a program there; its standard output."""
    built = build_package("python", interpreter=interpreter)

    def run(text, *arguments, **environment):
        clean = {key: value for key, value in os.environ.items()
                 if not key.startswith(("ARROW_QUANT_", "PYTHON"))}
        return call([interpreter, "-W", "error", "-c", text, *arguments],
                    env={**clean, "PYTHONPATH": str(built), **environment})
    return run


SUITE = ["test_python_api.py", "test_python_interop.py", "test_python_memory.py", "test_python_run.py",
         "test_python_torch.py"]


@pytest.mark.timeout(3600)
def test_suite_of_the_module(interpreter, free, record_property):
    """The module's own tests as they are, with what that interpreter has of the packages they need."""
    needed = ("pytest", "pytest_timeout", "numpy", "hypothesis")
    done = subprocess.run([interpreter, "-c", "import " + ", ".join(needed)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"{done.stderr.strip().splitlines()[-1]} in {interpreter}")
    done = subprocess.run([interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                           *(REPO / "tests/py" / name for name in SUITE)], capture_output=True, text=True,
                          cwd=REPO, timeout=3500)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    record_property("figure", f"Python module, free-threaded: {done.stdout.strip().splitlines()[-1]}")


def test_the_gil_stays_off(free):
    """Neither asked for by the import nor needed."""
    assert free("import sys, arrowquant\n"
                "assert not sys._is_gil_enabled()\n"
                "print(arrowquant.ArrowQuantV2().simple_test(), arrowquant._core.__file__[-3:])") == "True .so\n"


def test_many_threads(free, digits, tmp_path):
    assert free(THREADS, str(tmp_path), str(digits), "50", "15", PYTHONMALLOC="debug",
                PYTHONFAULTHANDLER="1") == "done\n"


def test_no_leak(free, tmp_path):
    assert int(free(LEAKS, "1000", str(tmp_path))) < 2048


SHARED = '''
import threading
import arrowquant
quantizer, config = arrowquant.ArrowQuantV2(), arrowquant.DiffusionQuantConfig()
rows, names = [[1.0, 2.0] * 32 for _ in range(40)], ["a", "b"]
tensors = list(quantizer.quantize({"a": rows, "b": rows}, 4).values())
table = arrowquant.LayerTable(names, tensors, {})
ended = threading.Event()

def change(step):
    while not ended.is_set():
        step()

def turn():
    rows.append(rows.pop(0))
    names[:] = ["x" * 40, "y" * 40]
    tensors[:] = tensors[::-1]

def read():
    for i in range(400):
        try:
            quantizer.quantize({"a": rows}, 4)["a"].dequantize()
            table.__arrow_c_array__()
        except (ValueError, TypeError, IndexError):
            pass
        config.bit_width = (2, 4, 8)[i % 3]
        config.layer_bits = {f"a{i}*": 8}
        config.sensitive_layers = [f"{i}"]
        config.copy() == config
        config.to_yaml()

changers = [threading.Thread(target=change, args=(turn,)) for _ in range(2)]
readers = [threading.Thread(target=read) for _ in range(6)]
for thread in changers + readers:
    thread.start()
for thread in readers:
    thread.join()
ended.set()
for thread in changers:
    thread.join()
print("done")
'''


def test_what_others_change_meanwhile(free):
    """Lists of weights, tables and configs that other threads write to: some result, or an error."""
    assert free(SHARED, PYTHONMALLOC="debug", PYTHONFAULTHANDLER="1") == "done\n"


def test_wheel_of_its_version(interpreter, clone, tmp_path):  # noqa: F811
    """setup.py makes no stable ABI of it."""
    setuptools = pytest.importorskip("setuptools", reason="setuptools is not installed")
    name = call([interpreter, "-c", "import setuptools.build_meta as b, sys; print(b.build_wheel(sys.argv[1]))",
                 tmp_path], cwd=clone, env={**os.environ, "AQ_CFLAGS": "-O0", "PYTHONPATH": str(
                     pathlib.Path(setuptools.__file__).parents[1])}).split()[-1]
    version = call([interpreter, "-c", "import sys; print('cp%d%dt' % sys.version_info[:2])"]).strip()
    assert f"-{version[:-1]}-{version}-" in name and (tmp_path / name).is_file()
