"""The built headers compile, link and run in every way that the manual promises."""
import re
import subprocess

import pytest

from conftest import LIBS, REPO, WARNINGS, call, need, plain_object

COMPILERS = {
    "gcc": ["gcc", "-std=c99"],
    "g++": ["g++", "-x", "c++", "-std=c++11"],
    "clang": ["clang", "-std=c99"],
    "clang++": ["clang++", "-x", "c++", "-std=c++11"],
}
SWITCHES = {
    "plain": [],
    "static": ["STATIC"],
    "no-stdio": ["NO_STDIO"],
    "no-threads": ["NO_THREADS"],
    "no-simd": ["NO_SIMD"],
    "no-avx512": ["NO_AVX512"],
    "static-bare": ["STATIC", "NO_STDIO", "NO_THREADS", "NO_SIMD"],
    "all": ["STATIC", "NO_STDIO", "NO_THREADS", "NO_SIMD", "NO_AVX512"],
}
# The optimizer finds what a syntax check cannot; these pairs make code, the others are checked only.
# (The C tests are linked with what each compiler makes of "plain".)
OPTIMIZED = {("gcc", "no-simd"), ("gcc", "no-stdio"), ("g++", "static-bare"),
             ("clang", "no-threads"), ("clang++", "static")}

IMPLEMENTATION = '#define ARROWQUANT_IMPLEMENTATION\n#include "arrowquant.h"\n'
# A C99 file that has already chosen what the system headers declare.
AFTER_SYSTEM_HEADERS = "#include <stdio.h>\n#include <string.h>\n#include <time.h>\n"

# Quantizes, dequantizes, and returns the number of weights that came back wrong.
ROUND_TRIP = """
static int round_trip(void) {
    static float weights[4 * 96], back[4 * 96];
    static unsigned char codes[4 * 96], params[4 * 3 * 8];
    aq_quant_spec spec = { AQ_CODE_AFFINE, AQ_PARAM_F32, 8, 32, AQ_FIT_LEAST_SQUARES, 0, 0 };
    aq_quant_layout layout;
    aq_quality quality;
    aq_error err;
    int i, wrong = 0;
    for (i = 0; i < 4 * 96; i++) weights[i] = (float)(i * 37 % 101) / 50.0f - 1.0f;
    if (aq_quantized_size(&spec, 4, 96, &layout, &err) != AQ_OK) return 1000;
    if (layout.code_bytes != sizeof codes || layout.param_bytes != sizeof params) return 1001;
    if (aq_quantize(NULL, &spec, weights, AQ_DTYPE_F32, 4, 96, NULL, codes, params, NULL, &quality,
                    &err) != AQ_OK) return 1002;
    if (aq_dequantize(NULL, &spec, codes, params, NULL, 4, 96, AQ_DTYPE_F32, back, &err) != AQ_OK)
        return 1003;
    for (i = 0; i < 4 * 96; i++) {
        float difference = weights[i] - back[i];
        wrong += !(difference < 0.01f && difference > -0.01f);
    }
    return wrong;
}
"""
MAIN = "int main(void) { return round_trip() != 0; }\n"


def compile_command(compiler, switches=(), *flags):
    defines = [f"-DARROWQUANT_{switch}" for switch in switches]
    return [*COMPILERS[compiler], *WARNINGS, *defines, "-I", REPO, *flags]


def write(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def make_object(folder, compiler, name, text, *flags):
    need(compiler)
    source, target = write(folder, name, text), folder / (name + ".o")
    call(compile_command(compiler, (), *flags, "-c", source, "-o", target))
    return target


def link_and_run(folder, linker, objects):
    call([linker, *objects, "-o", folder / "program", *LIBS])
    return call([folder / "program"])


@pytest.mark.parametrize("switches", SWITCHES)
@pytest.mark.parametrize("compiler", COMPILERS)
def test_matrix(compiler, switches, tmp_path):
    need(compiler)
    source = write(tmp_path, "library.c", AFTER_SYSTEM_HEADERS + IMPLEMENTATION)
    if (compiler, switches) in OPTIMIZED:
        level = "-O2" if compiler.startswith("g") else "-O1"  # clang warns before it optimizes
        mode = [level, "-c", "-o", tmp_path / "library.o"]
    else:
        mode = ["-fsyntax-only"]
    call(compile_command(compiler, SWITCHES[switches], *mode, source))


@pytest.mark.parametrize("compiler, level", [("gcc", "-O3"), ("clang++", "-Os")])
def test_optimization_levels(compiler, level, tmp_path):
    """(The tests below link what is not optimized, the C tests what is by -O1 and -O2.)"""
    need(compiler)
    source = write(tmp_path, "program.c", IMPLEMENTATION + ROUND_TRIP + MAIN)
    call(compile_command(compiler, (), level, source, "-o", tmp_path / "program", *LIBS))
    call([tmp_path / "program"])


@pytest.mark.parametrize("standard", ["gnu99", "c11", "c17", "gnu++11", "c++17", "c++20"])
@pytest.mark.parametrize("family", ["gcc", "clang"])
def test_other_standards(family, standard, tmp_path):
    need(family)
    language = ["-x", "c++"] if "+" in standard else ["-x", "c"]
    source = write(tmp_path, "library.c", IMPLEMENTATION)
    call([family, *language, f"-std={standard}", *WARNINGS, "-I", REPO, "-fsyntax-only", source])


@pytest.mark.parametrize("compiler", COMPILERS)
def test_declarations_alone(compiler, tmp_path):
    """Without the implementation, and twice in one file."""
    need(compiler)
    source = write(tmp_path, "use.c", '#include "arrowquant.h"\n#include "arrowquant.h"\n'
                                      "int use(void);\nint use(void) { return AQ_OK; }\n")
    for switches in SWITCHES.values():
        if "STATIC" not in switches:  # then each file needs the implementation
            call(compile_command(compiler, switches, "-fsyntax-only", source))


def test_implementation_after_declarations(tmp_path):
    """A file may include the header first without and then, even twice, with the switch."""
    source = write(tmp_path, "library.c", '#include "arrowquant.h"\n' + 2 * IMPLEMENTATION.replace(
        "#define", "#undef ARROWQUANT_IMPLEMENTATION\n#define"))
    call(compile_command("gcc", (), "-fsyntax-only", source))


def test_two_units(tmp_path):
    objects = [plain_object(*COMPILERS["gcc"]),
               make_object(tmp_path, "gcc", "use.c",
                           '#include "arrowquant.h"\n' + ROUND_TRIP + MAIN)]
    link_and_run(tmp_path, "gcc", objects)


def test_c_library_in_a_cxx_program(tmp_path):
    objects = [plain_object(*COMPILERS["gcc"]),
               make_object(tmp_path, "g++", "use.cc",
                           '#include "arrowquant.h"\n' + ROUND_TRIP + MAIN)]
    link_and_run(tmp_path, "g++", objects)


def test_cxx_library_in_a_c_program(tmp_path):
    objects = [plain_object(*COMPILERS["g++"]),
               make_object(tmp_path, "gcc", "use.c",
                           '#include "arrowquant.h"\n' + ROUND_TRIP + MAIN)]
    link_and_run(tmp_path, "g++", objects)


def test_static_in_two_units(tmp_path):
    static = "#define ARROWQUANT_STATIC\n" + IMPLEMENTATION
    other = "int other(void);\nint other(void) { return round_trip(); }\n"
    main = "int other(void);\nint main(void) { return round_trip() + other() != 0; }\n"
    objects = [make_object(tmp_path, "gcc", "one.c", static + ROUND_TRIP + other),
               make_object(tmp_path, "clang", "two.c", static + ROUND_TRIP + main)]
    link_and_run(tmp_path, "gcc", objects)


def test_own_linkage(tmp_path):
    """ARROWQUANT_API replaces the linkage of every public function."""
    hidden = '#define ARROWQUANT_API extern __attribute__((visibility("hidden")))\n'
    target = make_object(tmp_path, "gcc", "library.c", hidden + IMPLEMENTATION, "-fPIC")
    call(["gcc", "-shared", "-o", tmp_path / "library.so", target, *LIBS], cwd=tmp_path)
    exported = call(["nm", "-D", "--defined-only", tmp_path / "library.so"])
    assert "aq_" not in exported


def test_two_line_file(tmp_path):
    """examples/arrowquant.c, for those who prefer to compile a .c file."""
    library = tmp_path / "arrowquant.o"
    call([*COMPILERS["gcc"], *WARNINGS, "-c", REPO / "examples/arrowquant.c", "-o", library])
    use = make_object(tmp_path, "gcc", "use.c", '#include "arrowquant.h"\n' + ROUND_TRIP + MAIN)
    link_and_run(tmp_path, "gcc", [library, use])


@pytest.mark.parametrize("path", sorted(path.relative_to(REPO).as_posix()
                                        for folder in ["examples", "bench"]
                                        for path in (REPO / folder).glob("*.c")
                                        if "main(" in path.read_text(encoding="utf-8")))
def test_programs_of_ours(path):
    """Examples and benchmarks compile without a warning. (That they work is tested elsewhere.)"""
    for compiler in ["gcc", "clang"]:
        call([compiler, "-std=c99", *WARNINGS, "-I", REPO, "-fsyntax-only", REPO / path])


# ---------------------------------------------------------------- the kernels' own header

SIMD_IMPLEMENTATION = '#define ARROWQUANT_SIMD_IMPLEMENTATION\n#include "arrowquant_simd.h"\n'


@pytest.mark.parametrize("compiler", COMPILERS)
def test_simd_header_alone(compiler, tmp_path):
    need(compiler)
    source = write(tmp_path, "kernels.c", SIMD_IMPLEMENTATION)
    call(compile_command(compiler, (), "-O2", "-c", "-o", tmp_path / "kernels.o", source))
    for switches in [["NO_SIMD"], ["NO_AVX512"]]:
        call(compile_command(compiler, switches, "-fsyntax-only", source))


@pytest.mark.parametrize("compiler, flags", [
    ("arm-none-eabi-gcc", ["-mcpu=cortex-m4", "-mthumb"]),
    ("arm-none-eabi-gcc", ["-mcpu=cortex-m7", "-mthumb", "-mfloat-abi=hard"]),
    ("aarch64-linux-gnu-gcc", []), ("aarch64-linux-gnu-gcc", ["-march=armv8.2-a+dotprod"]),
    ("riscv64-linux-gnu-gcc", []), ("s390x-linux-gnu-gcc", ["-std=gnu99"])],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value)
def test_simd_header_elsewhere(compiler, flags, tmp_path):
    need(compiler)
    source = write(tmp_path, "kernels.c", SIMD_IMPLEMENTATION)
    call([compiler, "-std=c99", *WARNINGS, *flags, "-I", REPO, "-O1", "-c", source, "-o",
          tmp_path / "kernels.o"])


def test_one_header_each_in_two_units(tmp_path):
    objects = [plain_object(*COMPILERS["gcc"]),
               make_object(tmp_path, "gcc", "kernels.c", SIMD_IMPLEMENTATION),
               make_object(tmp_path, "gcc", "use.c",
                           '#include "arrowquant.h"\n' + ROUND_TRIP + MAIN)]
    link_and_run(tmp_path, "gcc", objects)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("order", ["library-first", "kernels-first"])
def test_both_headers_in_one_unit(compiler, order, tmp_path):
    """Each order and each compiler makes a program; the other pairs are checked only."""
    need(compiler)
    headers = [IMPLEMENTATION, SIMD_IMPLEMENTATION]
    if order == "kernels-first":
        headers.reverse()
    source = write(tmp_path, "program.c", "".join(headers) + ROUND_TRIP + MAIN)
    if (order == "library-first") != (compiler in ("gcc", "clang++")):
        call(compile_command(compiler, (), "-fsyntax-only", source))
        return
    call(compile_command(compiler, (), source, "-o", tmp_path / "program", *LIBS))
    call([tmp_path / "program"])


# ---------------------------------------------------------------- allocator

OWN_ALLOCATOR = """
#include <stdlib.h>
static long own_live;
static void *own_malloc(size_t size) { own_live++; return malloc(size); }
static void *own_realloc(void *pointer, size_t size) {
    if (!pointer) own_live++;
    return realloc(pointer, size);
}
static void own_free(void *pointer) { own_live -= pointer != NULL; free(pointer); }
#define ARROWQUANT_MALLOC(size) own_malloc(size)
#define ARROWQUANT_REALLOC(pointer, size) own_realloc(pointer, size)
#define ARROWQUANT_FREE(pointer) own_free(pointer)
"""


@pytest.mark.parametrize("compiler", ["gcc", "clang++"])
def test_own_allocator(compiler, tmp_path):
    need(compiler)
    main = """
int main(void) {
    aq_config config;
    aq_context *context = NULL;
    long most;
    if (aq_context_create(AQ_ISA_AUTO, NULL, &context, NULL) != AQ_OK) return 1;
    if (aq_config_from_yaml(context, "components: [a, b]", 18, "test", &config, NULL) != AQ_OK)
        return 2;
    most = own_live;
    aq_config_free(&config);
    aq_context_destroy(context);
    return most < 2 ? 3 : own_live != 0 ? 4 : 0;
}
"""
    source = write(tmp_path, "program.c", OWN_ALLOCATOR + IMPLEMENTATION + main)
    call(compile_command(compiler, (), source, "-o", tmp_path / "program", *LIBS))
    call([tmp_path / "program"])


@pytest.mark.parametrize("kept", [["MALLOC"], ["FREE"], ["MALLOC", "FREE"], ["MALLOC", "REALLOC"]])
def test_half_an_allocator_is_refused(kept, tmp_path):
    text = "".join(line + "\n" for line in OWN_ALLOCATOR.split("\n")
                   if not line.startswith("#define")
                   or re.match(r"#define ARROWQUANT_(\w+)", line).group(1) in kept)
    source = write(tmp_path, "library.c", text + IMPLEMENTATION)
    done = subprocess.run([*COMPILERS["gcc"], "-I", REPO, "-fsyntax-only", source],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert re.search(r"error: #error .*ARROWQUANT_MALLOC", done.stderr)


# ---------------------------------------------------------------- microcontroller

def test_cortex_m4(tmp_path, record_property):
    """No files, no threads, static buffers; the size of the whole program is shown."""
    need("arm-none-eabi-gcc")
    program = tmp_path / "embedded.elf"
    call(["arm-none-eabi-gcc", "-std=c99", "-Os", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard",
          "-mfpu=fpv4-sp-d16", *WARNINGS, "-ffunction-sections", "-fdata-sections",
          "-Wl,--gc-sections", "--specs=nano.specs", "--specs=nosys.specs", "-I", REPO,
          REPO / "examples/embedded.c", "-o", program, "-lm"])
    sizes = call(["arm-none-eabi-size", program]).splitlines()[1].split()
    text, data, bss = (int(number) for number in sizes[:3])
    figure = f"Cortex-M4, examples/embedded.c: text {text}, data {data}, bss {bss} bytes"
    print(figure)
    record_property("figure", figure)
    assert text < 64 * 1024
    symbols = call(["arm-none-eabi-nm", program])
    assert "aq_quantize" in symbols and " _malloc_r" not in symbols


@pytest.mark.parametrize("target", [["aarch64-linux-gnu"], ["i386-linux-gnu", "-msse2"],
                                    ["s390x-linux-gnu"], ["riscv64-linux-gnu"]], ids=lambda t: t[0])
def test_other_machines(target, tmp_path):
    """No warnings there either: other word sizes, byte orders, and NEON. Checked, not run: the C
    library's headers are those of this machine."""
    need("clang")
    headers = "/usr/include/" + call(["gcc", "-print-multiarch"]).strip()
    source = write(tmp_path, "library.c", IMPLEMENTATION)
    for switches in [["NO_STDIO", "NO_THREADS"], ["NO_STDIO", "NO_THREADS", "NO_SIMD", "STATIC"]]:
        call(["clang", "-std=c99", "--target=" + target[0], *target[1:], *WARNINGS, "-fsyntax-only",
              *[f"-DARROWQUANT_{switch}" for switch in switches],
              "-idirafter", headers, "-I", REPO, source])


def test_embedded_example_works(tmp_path):
    """The same program on this machine."""
    call([*COMPILERS["gcc"], *WARNINGS, "-O2", "-I", REPO, REPO / "examples/embedded.c",
          "-o", tmp_path / "embedded", "-lm"])
    call([tmp_path / "embedded"])


# ---------------------------------------------------------------- the manual

def manual_program(header):
    """The command and the text of the program in a header's first comment."""
    lines = (REPO / header).read_text(encoding="utf-8").split("\n")
    begin = next(i for i, line in enumerate(lines) if "A COMPLETE PROGRAM" in line)
    margin, command = re.match(r"([ *]*)A COMPLETE PROGRAM \((cc [^)]*)\)", lines[begin]).groups()
    end = next(i for i in range(begin + 1, len(lines))
               if re.match(re.escape(margin) + r"[A-Z]", lines[i]))
    return command, "\n".join(line[len(margin) + 4:] for line in lines[begin + 1:end]) + "\n"


@pytest.mark.parametrize("compiler", COMPILERS)
def test_program_of_the_manual(compiler, tmp_path):
    """Without a warning, beside the library as gcc makes it; below, its own command makes all of it."""
    need(compiler)
    text = manual_program("arrowquant.h")[1]
    assert text.count("#define ARROWQUANT_IMPLEMENTATION\n") == 1
    program = make_object(tmp_path, compiler, "first.c",
                          text.replace("#define ARROWQUANT_IMPLEMENTATION\n", ""))
    call(["gcc", program, plain_object(*COMPILERS["gcc"]), "-o", tmp_path / "first", *LIBS])
    shown = call([tmp_path / "first"])
    found = re.fullmatch(r"65536 weights in (\d+) bytes, SQNR ([\d.]+) dB, "
                         r"first weight -1.000 -> (-[\d.]+)\n", shown)
    assert found, shown
    assert int(found.group(1)) == 65536 // 2 + 512 * 4
    assert 20 < float(found.group(2)) < 40
    assert abs(float(found.group(3)) + 1) < 0.1


@pytest.mark.parametrize("header", ["arrowquant.h", "arrowquant_simd.h"])
def test_command_of_the_manual(header, tmp_path):
    """The very command that is written there, with the header copied beside the program."""
    command, text = manual_program(header)
    write(tmp_path, "first.c", text)
    (tmp_path / header).write_bytes((REPO / header).read_bytes())
    call(command.split(), cwd=tmp_path)
    assert call(["./first"], cwd=tmp_path).strip()


@pytest.mark.parametrize("compiler", COMPILERS)
def test_program_of_the_kernels(compiler, tmp_path):
    need(compiler)
    source = write(tmp_path, "first.c", manual_program("arrowquant_simd.h")[1])
    call(compile_command(compiler, (), source, "-o", tmp_path / "first"))
    found = re.fullmatch(r"(\w+): error ([\d.]+) of ([\d.]+)\n", call([tmp_path / "first"]))
    assert found and float(found.group(2)) < 0.01 * float(found.group(3))


def test_model_call_of_the_manual(tmp_path, digits):
    """The three lines under A WHOLE MODEL, on the bundled model."""
    lines = (REPO / "arrowquant.h").read_text(encoding="utf-8").split("\n")
    begin = next(i for i, line in enumerate(lines) if line.startswith("A WHOLE MODEL")) + 1
    code = "\n".join(line for line in lines[begin:begin + 3])
    assert "aq_quantize_model" in code
    write(tmp_path, "model.c", IMPLEMENTATION + "#include <stdio.h>\nint main(void) {\n"
          "    aq_error err = { AQ_OK, \"\", \"\", 0 };\n" + code
          + "\n    return err.status != AQ_OK;\n}\n")
    (tmp_path / "dit").symlink_to(digits, target_is_directory=True)
    call(compile_command("gcc", (), "model.c", "-o", "model", *LIBS), cwd=tmp_path)
    call(["./model"], cwd=tmp_path)
    assert (tmp_path / "dit-int2/transformer/config.json").is_file()
