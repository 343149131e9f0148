"""What the library exports, needs and keeps: only its API, little of libc, no state."""
import re

import pytest

from conftest import REPO, WARNINGS, call, plain_object

NO_SWITCHES = ["NO_STDIO", "NO_THREADS", "NO_SIMD", "NO_AVX512"]
IMPLEMENTATION = '#define ARROWQUANT_IMPLEMENTATION\n#include "arrowquant.h"\n'


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """library(*switches, text=…): the object file, compiled once."""
    made = {}

    def build(*switches, text=IMPLEMENTATION):
        if not switches and text == IMPLEMENTATION:
            return plain_object("gcc", "-std=c99")
        if (switches, text) not in made:
            source = tmp_path_factory.mktemp("library") / "library.c"
            source.write_text(text)
            made[switches, text] = source.with_suffix(".o")
            call(["gcc", "-std=c99", *WARNINGS,
                  *[f"-DARROWQUANT_{switch}" for switch in switches], "-I", REPO, "-c", source,
                  "-o", made[switches, text]])
        return made[switches, text]
    return build


def symbols(target, *options):
    return {line.split()[-1] for line in call(["nm", *options, target]).splitlines() if line.strip()}


def preprocessed(*switches):
    """The declarations of arrowquant.h as the compiler sees them, system headers left out."""
    text = call(["gcc", "-std=c99", "-E", *[f"-DARROWQUANT_{switch}" for switch in switches],
                 "-x", "c", REPO / "arrowquant.h"])
    ours, kept = False, []
    for line in text.splitlines():
        mark = re.match(r'# \d+ "([^"]*)"', line)
        if mark:
            ours = mark.group(1).endswith("arrowquant.h")
        elif ours:
            kept.append(line)
    return "\n".join(kept)


def declared(text):
    return set(re.findall(r"\b(aq_\w+)\s*\([^;{}]*\)\s*;", text))


def structs(text):
    """name -> its text, for each public struct and enum."""
    return {name: re.sub(r"\s+", " ", body) for body, name in
            re.findall(r"typedef ((?:struct|enum) (\w+) \{.*?\} \2;)", text, re.S)}


@pytest.mark.parametrize("switches", [[], ["NO_STDIO"], ["NO_THREADS"], ["NO_SIMD"]])
def test_exports_are_the_api(switches, library):
    """Exactly the declared functions: none is missing, nothing else leaks."""
    exported = symbols(library(*switches), "-g", "--defined-only")
    api = declared(preprocessed(*switches))
    assert len(api) > 20
    assert exported == api


def test_static_exports_nothing(library):
    assert symbols(library("STATIC"), "-g", "--defined-only") == set()


def test_simd_header_exports_its_prefix(library):
    text = '#define ARROWQUANT_SIMD_IMPLEMENTATION\n#include "arrowquant_simd.h"\n'
    exported = symbols(library(text=text), "-g", "--defined-only")
    assert exported and all(name.startswith("aq_simd_") for name in exported)


def test_no_writable_data(library):
    """No globals: nothing in .data, .bss or thread-local storage."""
    for text in [IMPLEMENTATION, IMPLEMENTATION.replace("ARROWQUANT_IMP", "ARROWQUANT_SIMD_IMP")
                 .replace("arrowquant.h", "arrowquant_simd.h")]:
        target = library(text=text)
        sections = re.findall(r"^(\.\S+)\s+(\d+)\s+\d+$", call(["size", "-A", target]), re.M)
        assert sections
        kept = [(name, size) for name, size in sections if int(size) and
                re.match(r"\.(data|bss|tdata|tbss|init_array|ctors)", name)
                and not name.startswith(".data.rel.ro")]
        assert kept == []


MEMORY = {"memcpy", "memset", "memmove", "memcmp", "memchr", "strlen", "strcmp", "strncmp",
          "strchr", "strrchr", "strstr"}
ALLOCATION = {"malloc", "realloc", "free"}
MATH = {"sqrt", "sqrtf", "log10", "fabs", "fabsf", "floor", "floorf", "ceil", "rint", "rintf", "nearbyint",
        "nearbyintf", "lrintf", "frexp", "ldexp", "log", "exp", "log2", "fma", "fmaf"}
SYSTEM = {"getenv", "__assert_fail", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}


def test_bare_build_needs_only_memory_and_math(library):
    needed = symbols(library("NO_STDIO", "NO_THREADS"), "-u")
    assert needed <= MEMORY | ALLOCATION | MATH | SYSTEM, needed


def test_no_locale_and_no_stdio_streams(library):
    """Nothing whose outcome hangs on the host's locale, no hidden global state of libc."""
    needed = symbols(library(), "-u")
    refused = re.compile(r"^(__)?(v?f?s?n?printf(_chk)?|(f|s)?scanf|strto(d|f|ld|l|ul|ll|ull)|ato[fil]+|"
                         r"setlocale|localeconv|fopen|fwrite|fread|f?put(s|c|char)|tolower|toupper|is[a-z]+|"
                         r"strtok|strerror|rand|srand|exit|abort|signal)$")
    assert [name for name in needed if refused.match(name)] == []


def test_no_threads_means_no_pthread(library):
    assert not any("pthread" in name for name in symbols(library("NO_THREADS"), "-u"))
    assert any("pthread" in name for name in symbols(library(), "-u"))


@pytest.mark.parametrize("switch", ["STATIC", *NO_SWITCHES])
def test_no_switch_changes_a_struct(switch, tmp_path):
    every, some = structs(preprocessed()), structs(preprocessed(switch))
    assert {"aq_error", "aq_context", "aq_config", "aq_quant_spec", "aq_quality"} <= set(some)
    for name, text in some.items():
        assert text == every[name], name
    names = sorted(name for name, text in some.items() if text.startswith("struct"))
    assert sizes(tmp_path, names, switch) == sizes(tmp_path, names)


def sizes(folder, names, *switches):
    lines = "".join(f'    printf("{name} %d\\n", (int)sizeof({name}));\n' for name in names)
    source = folder / "sizes.c"
    source.write_text('#include "arrowquant.h"\n#include <stdio.h>\nint main(void) {\n'
                      + lines + "    return 0;\n}\n")
    call(["gcc", "-std=c99", *[f"-DARROWQUANT_{switch}" for switch in switches], "-I", REPO, source,
          "-o", folder / "sizes"])
    return call([folder / "sizes"])
