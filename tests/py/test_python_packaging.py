"""Types, stubs, wheels: what tools other than the interpreter see of the Python module."""
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

from conftest import REPO, call

EXAMPLE = '''
import asyncio
from arrow_quant_v2 import ArrowQuantV2, AsyncArrowQuantV2, DiffusionQuantConfig, ConfigurationError
from arrowquant import Context, QuantizedTensor, load_model

config = DiffusionQuantConfig(bit_width=4, layer_bits={"a": 8}, min_sqnr_db=None)
config.modality = "text"
bits: int = config.bit_width
decibels: float | None = config.min_sqnr_db
text: str = config.to_yaml()

def progress(fraction: float, message: str) -> None:
    print(f"{fraction:.0%} {message}")

async def tell(fraction: float, message: str) -> None:
    await asyncio.sleep(0)

def run(path: str) -> float:
    made = ArrowQuantV2().quantize_diffusion_model(path, path + "-q", config, progress,
                                                   context=Context())
    tensors: dict[str, QuantizedTensor] = ArrowQuantV2().quantize({"a": [1.0]}, 8)
    memoryview(tensors["a"].codes)
    with load_model(path + "-q") as model:
        for name, tensor in model.items():
            print(name, tensor.dequantize().numpy().mean())
    return float(made["cosine_similarity"])

async def main() -> None:
    await AsyncArrowQuantV2().quantize_diffusion_model("a", "b", progress_callback=tell)

try:
    asyncio.run(main())
except ConfigurationError as problem:
    print(problem.status, problem.tensor, problem.hint)
'''


# torch's own sources are not looked into: a minute each time.
QUICK = """[mypy]
[mypy-torch.*]
follow_imports = skip
ignore_missing_imports = True
[mypy-numpy.*]
ignore_missing_imports = True
"""


def need(name):
    return pytest.importorskip(name, reason=f"{name} is not installed")


def test_config_stub_is_of_the_table():
    """docs/CONFIG.md is checked against src/config/fields.h elsewhere."""
    call([sys.executable, REPO / "python/stubs.py", "--check"])


def test_mypy(package, tmp_path):
    """The package and a program that uses it, --strict; and a wrong program is noticed."""
    need("mypy")
    (tmp_path / "good.py").write_text(EXAMPLE)
    (tmp_path / "bad.py").write_text("from arrowquant import DiffusionQuantConfig\n"
                                     "DiffusionQuantConfig(bit_width='4').group_size.upper()\n"
                                     "DiffusionQuantConfig(bit_widht=4)\n")
    (tmp_path / "mypy.ini").write_text(QUICK)
    def mypy(*words):
        return subprocess.run([sys.executable, "-m", "mypy", "--strict", "--cache-dir",
                               str(tmp_path / "cache"), *words], cwd=tmp_path, capture_output=True,
                              text=True, timeout=280, env={**os.environ, "MYPYPATH": str(package)})
    done = mypy("-p", "arrowquant", "-p", "arrow_quant_v2")
    assert done.returncode == 0, done.stdout
    done = mypy("good.py")
    assert done.returncode == 0, done.stdout
    bad = mypy("bad.py")
    assert bad.returncode == 1 and len(re.findall(r": error: ", bad.stdout)) == 3, bad.stdout


def has(name):
    import importlib.util
    return importlib.util.find_spec(name) is not None


def test_stubs_agree_with_the_module(package, tmp_path):
    need("mypy")
    (tmp_path / "mypy.ini").write_text(QUICK)
    allowed = tmp_path / "allowed"
    if sys.version_info < (3, 12):  # CPython shows it from 3.12 on
        allowed.write_text("arrowquant._core.Array.__buffer__\n"
                           "arrowquant._core.QuantizedTensor.__buffer__\n")
    else:
        allowed.write_text("")
    if not has("torch"):
        with open(allowed, "a") as out:
            out.write("arrowquant.torch\n")
    done = subprocess.run([sys.executable, "-m", "mypy.stubtest", "arrowquant", "arrow_quant_v2",
                           "--allowlist", str(allowed), "--mypy-config-file",
                           str(tmp_path / "mypy.ini")], cwd=tmp_path, capture_output=True, text=True,
                          timeout=280, env={**os.environ, "MYPYPATH": str(package),
                                            "PYTHONPATH": str(package)})
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """What a clone of the project holds."""
    def left_out(folder, names):
        return {name for name in names if name in (".git", "build", "__pycache__", "fixtures")
                or name.endswith(".egg-info")}
    target = tmp_path_factory.mktemp("clone") / "arrowquant"
    shutil.copytree(REPO, target, ignore=left_out, symlinks=True)
    return target


def test_wheel_and_install(package, clone, tmp_path):
    """sdist and wheel by `python -m build`; one wheel for all versions, only libc outside, licenses
    inside; pip install into an empty environment, where all of it works without NumPy."""
    need("build")
    need("setuptools")
    call([sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist"], cwd=clone,
         env={**os.environ, "AQ_CFLAGS": "-O0"})  # what is in it is the point: seconds, not a minute
    sdist, wheel = sorted((tmp_path / "dist").iterdir(), key=lambda path: path.suffix)
    assert sdist.name.endswith(".tar.gz") and re.fullmatch(
        r"arrowquant-\d+\.\d+\.\d+-cp311-abi3-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        metadata = file.read(next(name for name in names if name.endswith("METADATA"))).decode()
    for name in ("arrowquant/_core.abi3.so", "arrowquant/_core.pyi", "arrowquant/_config.pyi",
                 "arrowquant/py.typed", "arrow_quant_v2/__init__.py", "arrowquant/torch.py"):
        assert name in names, name
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "License-Expression: MIT OR Unlicense" in metadata and "Requires-Dist" not in metadata
    if has("auditwheel"):
        shown = call([sys.executable, "-m", "auditwheel", "show", wheel])
        assert re.search(r'tag:\s+"manylinux_2_\d+', shown), shown
        assert "libpython" not in shown
    call([sys.executable, "-m", "venv", tmp_path / "venv"])
    python = tmp_path / "venv/bin/python"
    call([python, "-m", "pip", "install", "--quiet", "--no-index", "--disable-pip-version-check", wheel])
    out = call([python, "-c", "import arrow_quant_v2 as a; print(a.ArrowQuantV2().simple_test())"],
               cwd=tmp_path)
    assert out == "True\n"
    assert call([tmp_path / "venv/bin/aq", "--version"]).startswith("aq ")


def test_stable_abi_only(package):
    """Nothing is asked of the interpreter that the stable ABI of 3.11 lacks: checked by loading under
    later versions in test_python_run, and here by name."""
    symbols = call(["nm", "-D", "--undefined-only", package / "arrowquant/_core.abi3.so"])
    private = [line.split()[-1] for line in symbols.splitlines()
               if re.match(r"_Py(?!_(Dealloc|NoneStruct|TrueStruct|FalseStruct|NotImplementedStruct)|\w+_SizeT)",
                           line.split()[-1])]
    assert private == []
    exported = call(["nm", "-D", "--defined-only", package / "arrowquant/_core.abi3.so"])
    assert [line.split()[-1] for line in exported.splitlines()] == ["PyInit__core"]
