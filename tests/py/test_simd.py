"""Which kernels run, that all of them agree, and what the compilers made of them."""
import os
import platform
import re
import shutil
import subprocess

import pytest

import run
from conftest import BUILD, LIBS, REPO, WARNINGS, call, held, need

X86 = platform.machine() in ("x86_64", "AMD64")
KERNELS = sorted((REPO / "src/simd").glob("*.c"))
# Linear algebra fuses on purpose, on every ISA: tests/c/test_gptq.c compares it with fmaf.
FUSING = sorted((REPO / "src/simd").glob("*_linear.c"))
DECIDING = sorted({*KERNELS, *(REPO / "src/quant").glob("*.c")} - set(FUSING))
FUSED = re.compile(r"\bvfn?m(?:add|sub)|\bfn?m(?:add|sub)\b|\bfml[as]\b")


def ask(program, *words, isa=None):
    environment = {name: value for name, value in os.environ.items() if name != "ARROW_QUANT_ISA"}
    if isa is not None:
        environment["ARROW_QUANT_ISA"] = isa
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=60,
                          env=environment)
    return done.returncode, done.stdout.strip()


@pytest.fixture(scope="module")
def simd(tool):
    return tool("simd")


@pytest.fixture(scope="module")
def isas(simd):
    return ask(simd, "list")[1].split()


# ---------------------------------------------------------------- choice

def test_every_isa_gives_the_same(simd, isas):
    """Forced by argument and by environment; named as asked; the same bytes and sums."""
    assert isas[-1] == "scalar"
    results = set()
    for isa in isas:
        status, by_argument = ask(simd, "run", isa)
        assert status == 0
        assert ask(simd, "run", "auto", isa=isa) == (0, by_argument)
        name, checksums = by_argument.split(maxsplit=1)
        assert name == isa
        results.add(checksums)
    assert len(results) == 1


def test_best_one_by_default(simd, isas):
    for isa in (None, "", "auto"):
        assert ask(simd, "run", "auto", isa=isa)[1].split()[0] == isas[0]


def test_argument_outdoes_environment(simd, isas):
    assert ask(simd, "run", "scalar", isa=isas[0])[1].split()[0] == "scalar"


def test_isa_that_does_not_exist(simd):
    status, text = ask(simd, "run", "auto", isa="sse9")
    assert status == 1 and "ARROW_QUANT_ISA is 'sse9'" in text and "scalar, avx2" in text


def test_isa_that_this_machine_lacks(simd, isas):
    for isa in {"avx2", "avx512", "neon"} - set(isas):
        for status, text in (ask(simd, "run", isa), ask(simd, "run", "auto", isa=isa)):
            assert status == 1 and f"no {isa} kernels" in text and "use scalar or auto" in text


@pytest.mark.parametrize("switch, gone", [("NO_SIMD", {"avx512", "avx2", "neon"}),
                                          ("NO_AVX512", {"avx512"})])
def test_switches(switch, gone, isas, tmp_path):
    """What is left out is not there, neither in the list nor in the code."""
    program = tmp_path / "simd"
    call(["gcc", "-std=c99", "-O0", *WARNINGS, f"-DARROWQUANT_{switch}", "-DAQ_TEST_BUNDLE", "-I", REPO / "tests/c",
          "-I", REPO, REPO / "tests/c/tool_simd.c", "-o", program, *LIBS])
    assert ask(program, "list")[1].split() == [isa for isa in isas if isa not in gone]
    need("objdump")
    if X86:
        code = call(["objdump", "-d", "--no-show-raw-insn", program])
        assert not re.search("%zmm", code)
        assert (switch == "NO_SIMD") == (not re.search(r"vmulps.*%ymm", code))


# ---------------------------------------------------------------- code

def test_no_choice_by_the_sign_of_chars():
    """GCC folds it to chars below 0, which there are none of under -funsigned-char."""
    assert len(KERNELS) > 30
    for source in KERNELS:
        code = re.sub(r"/\*.*?\*/", "", source.read_text(encoding="utf-8"), flags=re.S)
        assert not re.search(r"blendv_epi8|movepi8_mask", code), source.name


@pytest.fixture(scope="module")
def compiled():
    """compiled(compiler, flags, source): the object, made once for all workers."""
    def build(compiler, flags, source):
        folder = BUILD / "kernels" / "-".join([compiler, *(flag.lstrip("-") for flag in flags)])
        target = folder / f"{source.parent.name}-{source.stem}.o"
        with held(f"kernels-{folder.name}"):
            status, output = run.build_once(
                [compiler, "-std=gnu99", *flags, "-c", source, "-o", target], target,
                [source, *run.headers_of_src()])
        assert status == 0, output
        return target
    return build


@pytest.fixture(scope="module")
def disassembled(compiled):
    return lambda *what: call(["objdump", "-d", "--no-show-raw-insn", compiled(*what)])


def native_has_fma():
    text = subprocess.run(["gcc", "-march=native", "-dM", "-E", "-"], input="", text=True,
                          capture_output=True, timeout=60).stdout
    return "__FMA__" in text


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("fusing", [False, True], ids=["-O2", "-O3 for a machine that fuses"])
def test_nothing_is_contracted(compiler, fusing, tmp_path, disassembled):
    """Not one fused multiply-add where rounding decides a code, in GNU mode, where compilers
    fuse what they may; that they do is shown with a file of another kind."""
    machine = ["-march=native"] if native_has_fma() else ["-mfma", "-mavx2"]
    flags = ["-O3", *machine] if fusing else ["-O2"]
    need(compiler)
    need("objdump")
    if not X86:
        pytest.skip("x86 flags")
    control = tmp_path / "control.c"
    control.write_text("float f(float a, float b, float c) { return a * b + c; }\n")
    assert bool(FUSED.search(disassembled(compiler, flags, control))) == fusing
    for source in DECIDING:
        found = FUSED.findall(disassembled(compiler, flags, source))
        assert not found, f"{source.name}: {len(found)} × {found[0]}"
    fused = {source.stem for source in FUSING
             if FUSED.search(disassembled(compiler, flags, source))}
    assert {"avx2_linear", "avx512_linear"} <= fused


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_registers(compiler, disassembled):
    """At the default -march each file has the instructions of its ISA, and of no better one."""
    need(compiler)
    need("objdump")
    if not X86:
        pytest.skip("x86 registers")
    for source in KERNELS:
        code = disassembled(compiler, ["-O2"], source)
        if source.stem.startswith(("avx512_", "vnni_")):
            assert "%zmm" in code, source.name
        elif source.stem.startswith(("avx2_", "x86_")):
            assert "%ymm" in code and "%zmm" not in code, source.name
        else:
            assert "%ymm" not in code and "%zmm" not in code, source.name


def test_no_calls_of_libm(compiled):
    """The kernels need memcpy and its like, nothing that differs from one C library to another."""
    if not shutil.which("nm"):
        pytest.skip("no nm here")
    objects = [compiled("gcc", ["-O2"], source) for source in KERNELS]
    wanted = set(re.findall(r"\bU (\S+)", call(["nm", "-u", *objects])))
    foreign = {name for name in wanted if not name.startswith("aq_")}
    assert foreign <= {"memcpy", "memset", "strcmp", "memmove", "_GLOBAL_OFFSET_TABLE_"}
