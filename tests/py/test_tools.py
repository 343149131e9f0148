"""The checking tools: ThreadSanitizer, valgrind, and ASan with UBSan over runs of the tool. What is
quick runs always; `make test-tools` (AQ_TOOLS=all) adds every C test under each of them."""
import os
import pathlib
import re
import subprocess

import pytest

from conftest import BUILD, LIBS, REPO, call, held, library_objects, link_example, need, stale
from tool_models import environment, files_of, llm_tensors, sharded_folder

ALL = os.environ.get("AQ_TOOLS") == "all"
C_TESTS = sorted(path.stem for path in (REPO / "tests/c").glob("test_*.c"))
QUICK = [("tsan", "test_parallel"), ("tsan", "test_thread")]
CHOSEN = [(kind, name) for kind in ("tsan", "valgrind") for name in C_TESTS] if ALL else QUICK
KINDS = {  # compiler and flags, and which build of the C tests has the library so, if one has
    "tsan": ("clang", ["-O1", "-g1", "-fsanitize=thread"], None),
    "asan": ("clang", ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
             "clang-c99-sanitized"),
    "valgrind": ("gcc", ["-O1", "-g"], "gcc-c99"),
}
ENVIRONMENT = {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66",
               "ASAN_OPTIONS": "detect_leaks=1:exitcode=66", "UBSAN_OPTIONS": "print_stacktrace=1"}
# Clean: no error, and no block that nobody points to. Possible losses count as well.
VALGRIND = ["valgrind", "--quiet", "--error-exitcode=66", "--leak-check=full",
            "--show-leak-kinds=definite,indirect,possible",
            "--errors-for-leak-kinds=definite,indirect,possible"]


def library_of(kind, name):
    """The library as objects; that of the kernels alone for the test of it."""
    compiler, flags, key = KINDS[kind]
    if key:
        return library_objects(key)
    made = []
    for header in ["arrowquant", "arrowquant_simd"] if name == "test_simd_api" else ["arrowquant"]:
        main = BUILD / "checked" / kind / f"{header}.c"
        library, internals = main.with_suffix(".o"), ["-DAQ_LIB=extern", "-DAQ_SIMD_LIB=extern"]
        if stale(library, [REPO / f"{header}.h"]):
            main.write_text(f'#define {header.upper()}_IMPLEMENTATION\n#include "{header}.h"\n')
            call([compiler, *flags, "-I", REPO, *(internals if header == "arrowquant" else []), "-c",
                  main, "-o", library])
        made.append(library)
    return made


@pytest.fixture(scope="session")
def build():
    """build(kind, name): a C test, or the tool as "aq"; the library is compiled once a kind."""
    def make(kind, name):
        compiler, flags, _ = KINDS[kind]
        need(compiler)
        program = BUILD / "checked" / kind / name
        source = REPO / ("examples/aq.c" if name == "aq" else f"tests/c/{name}.c")
        with held(f"checked-{kind}"):
            program.parent.mkdir(parents=True, exist_ok=True)
            probe = subprocess.run([compiler, *flags, "-x", "c", "-", "-o", os.devnull], text=True,
                                   input="int main(void) { return 0; }", capture_output=True)
            if probe.returncode != 0:
                pytest.skip(f"{compiler} lacks {' '.join(flags)} here")
            inputs = [source, REPO / "arrowquant.h", *(REPO / "tests/c").glob("*.h")]
            if stale(program, inputs):
                objects = library_of(kind, name)
                if name == "aq":
                    link_example("aq.c", program, *flags, compiler=compiler, objects=objects)
                else:
                    call([compiler, *flags, "-I", REPO / "tests/c", source, *objects, "-o", program,
                          *LIBS])
        return program
    return make


def check(command, seconds=280, status=0, extra=None, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                          errors="replace", stdin=subprocess.DEVNULL, timeout=seconds,
                          env=environment(**ENVIRONMENT, **(extra or {})), **options)
    output = done.stdout + done.stderr
    assert done.returncode == status and "WARNING: ThreadSanitizer" not in output \
        and "runtime error" not in output, f"{command}\n{done.returncode}\n{output[-6000:]}"
    return done.stdout


@pytest.mark.timeout(1800 if ALL else 300)
@pytest.mark.parametrize("kind,name", CHOSEN)
def test_c_test(build, kind, name, record_property):
    if kind == "valgrind":
        need("valgrind")
    program = build(kind, name)
    prefix = VALGRIND if kind == "valgrind" else []
    # Shorter loops, as on emulated machines: the tools look at each path, not at each value.
    extra = {"AQ_TEST_BRIEF": "1", "AQ_SIMD_GROUPS": "3000"}
    if kind == "valgrind":  # which rounds a fused product twice, and knows no modes of the processor
        extra["AQ_TEST_EXCEPT"] = "update_is_fused host_floating_point_mode"
    output = check([*prefix, program], seconds=1500 if ALL else 280, cwd=REPO, extra=extra)
    found = re.search(r"^(\d+ passed), 0 failed", output, re.M)
    assert found, output
    record_property("figure", f"{name} under {kind}: {found.group(1)}, no finding")


def tool_runs(prefix, aq, digits, folder, threads):
    """A life of a model through the tool: every command, and a few that fail."""
    model = sharded_folder(folder / "in", llm_tensors(1, 64), 2)
    def run(*words, status=0):
        return check([*prefix, aq, *words], status=status)
    count = 0
    for source, bits in ((digits, 4), (model, 2), (model, 8)):
        out, plain = folder / f"q{count}", folder / f"p{count}"
        run("quantize", source, out, "--bits", bits, "--threads", threads, "--quiet",
            *(["--streaming", "--parameter-bits", 8, "--symmetric"] if bits == 2 else []))
        run("inspect", out, "--verify", "--threads", threads)
        run("validate", source, out, "--threads", threads, "--min-accuracy", 0.1)
        run("dequantize", out, plain, "--dtype", "bf16", "--threads", threads, "--quiet")
        run("diff", source, plain, "--threads", threads, "--json")
        run("quantize", source, out, "--overwrite", "--threads", threads, "--quiet")
        run("quantize", source, out, "--quiet", status=1)
        run("quantize", source, "--dry-run", "--json")
        count += 8
    run("quantize", folder / "nothing", folder / "out", "--quiet", status=1)
    run("inspect", out / "config.json", status=1)
    run("config", "--profile", "edge")
    return count + 3


def test_each_malloc_fails(tool, digits, tmp_path, record_property):
    """Where no context brings an allocator."""
    output = check([tool("malloc"), digits / "transformer", tmp_path / "out"],
                   extra={"ARROW_QUANT_BIT_WIDTH": "8"})
    assert ", 0 failed" in output and " 0 blocks leaked" in output, output
    record_property("figure", re.search(r"\d+ faults of malloc", output).group() + " without a context")


@pytest.mark.parametrize("kind", ["tsan", "asan", "valgrind"])
def test_tool(build, kind, digits, tmp_path, record_property):
    prefix = []
    if kind == "valgrind":
        need("valgrind")
        prefix = VALGRIND
    count = tool_runs(prefix, build(kind, "aq"), digits, tmp_path, 4)
    record_property("figure", f"{kind}: {count} runs of the tool, no finding")


def test_what_the_tools_find(build, tmp_path):
    """They would: a program with a race, a leak and an overflow."""
    source = tmp_path / "bad.c"
    source.write_text("#include <pthread.h>\n#include <stdlib.h>\nstatic int x;\n"
                      "static void *add(void *p) { for (int i = 0; i < 9999; i++) x++; return p; }\n"
                      "int main(int c, char **v) { (void)v; pthread_t t;\n"
                      "pthread_create(&t, 0, add, 0); add(0); pthread_join(t, 0);\n"
                      "int *volatile q = malloc(4); q[c] = 1; q = 0; return 0; }\n")
    for kind in ("tsan", "asan", "valgrind"):
        compiler, flags, _ = KINDS[kind]
        need(compiler)
        program = tmp_path / kind
        call([compiler, *flags, source, "-o", program, *LIBS])
        if kind == "valgrind":
            need("valgrind")
        prefix = VALGRIND if kind == "valgrind" else []
        done = subprocess.run([*prefix, program], capture_output=True, env=environment(**ENVIRONMENT))
        assert done.returncode in (66, 1), kind
