#!/usr/bin/env python3
"""Joins src/ into the two headers at the top level.

    amalgamate.py            writes arrowquant.h and arrowquant_simd.h
    amalgamate.py --check    exits 1 when they differ from src/, writes nothing
    amalgamate.py -o DIR     works on DIR instead of the top level

Needs nothing but Python 3. It also keeps the house in order; each of these is an error: a source
that no header contains, an #include that leads to a room above, a file that stands before what it
includes, a macro that a .c file leaves defined, one name for two things in two files.
"""
import argparse
import os
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parent
SRC = TOP / "src"

# From the bottom up: a room includes only itself, rooms before it, and (all but simd) the API.
ROOMS = ["simd", "base", "config", "quant", "calib", "infer", "format", "model"]

MANUAL = "api/manual.h"
API = "api/arrowquant_api.h"

# The kernels: in both headers, once in a file that includes both.
KERNELS = [
    "simd/simd.h",
    "simd/float_mode.c",
    "simd/scalar_convert.c",
    "simd/scalar_sums.c",
    "simd/scalar_fit.c",
    "simd/scalar_codes.c",
    "simd/scalar_linear.c",
    "simd/scalar_hadamard.c",
    "simd/scalar_strips.c",
    "simd/scalar_dots.c",
    "simd/neon.h",
    "simd/neon_convert.c",
    "simd/neon_sums.c",
    "simd/neon_fit.c",
    "simd/neon_codes.c",
    "simd/neon_linear.c",
    "simd/neon_hadamard.c",
    "simd/neon_strips.c",
    "simd/neon_dots.c",
    "simd/x86.h",
    "simd/x86_fit.c",
    "simd/avx2_convert.c",
    "simd/avx2_sums.c",
    "simd/avx2_fit.c",
    "simd/avx2_codes.c",
    "simd/avx2_linear.c",
    "simd/avx2_hadamard.c",
    "simd/avx2_strips.c",
    "simd/avx2_dots.c",
    "simd/avx512_convert.c",
    "simd/avx512_sums.c",
    "simd/avx512_fit.c",
    "simd/avx512_codes.c",
    "simd/avx512_linear.c",
    "simd/avx512_strips.c",
    "simd/avx512_dots.c",
    "simd/dispatch.c",
    "simd/forward.h",
    "simd/scalar_forward.c",
    "simd/neon_forward.c",
    "simd/avx2_forward.c",
    "simd/avx2_products.c",
    "simd/avx2_interleaved.c",
    "simd/avx512_forward.c",
    "simd/vnni_forward.c",
    "simd/forward_dispatch.c",
    "simd/trellis.h",
    "simd/trellis_tables.c",
    "simd/scalar_trellis.c",
    "simd/neon_trellis.c",
    "simd/neon_trellis_read.c",
    "simd/avx2_trellis.c",
    "simd/avx2_trellis_read.c",
    "simd/trellis_dispatch.c",
]

# What arrowquant_simd.h has besides the kernels.
SIMD_API = "simd/arrowquant_simd_api.h"
SIMD_EXPORTS = "simd/exports.c"

# Everything else of arrowquant.h, each file after all that it includes.
LIBRARY = [
    "base/base.h",
    "base/error.c",
    "base/alloc.c",
    "base/text.h",
    "base/text.c",
    "base/number.c",
    "base/crc32.h",
    "base/crc32.c",
    "base/crc32_fold.c",
    "base/json.h",
    "base/json.c",
    "base/yaml.h",
    "base/yaml.c",
    "base/yaml_scalar.c",
    "base/thread.h",
    "base/thread.c",
    "base/file.h",
    "base/file_system.h",
    "base/file.c",
    "base/file_posix.c",
    "base/file_win32.c",
    "config/fields.h",
    "config/config.c",
    "config/config_check.c",
    "config/config_set.c",
    "config/config_get.c",
    "config/config_yaml.c",
    "config/config_env.c",
    "quant/quant.h",
    "quant/tile.h",
    "quant/blocks.h",
    "quant/context.c",
    "quant/layout.c",
    "quant/convert.c",
    "quant/quality.c",
    "quant/tile.c",
    "quant/parameters.c",
    "quant/residual.c",
    "quant/parameters_read.c",
    "quant/zero_point.c",
    "quant/k_fit.c",
    "quant/k_blocks.c",
    "quant/blocks.c",
    "quant/trellis.h",
    "quant/rotate.h",
    "quant/rotate.c",
    "quant/trellis_decode.c",
    "quant/trellis_encode.c",
    "quant/trellis_rows.c",
    "quant/quantize.c",
    "quant/dequantize.c",
    "quant/linear.h",
    "quant/gptq.h",
    "quant/gptq_space.h",
    "quant/cholesky.c",
    "quant/feedback.c",
    "quant/gptq.c",
    "quant/gptq_refit.c",
    "quant/gptq_trellis.c",
    "quant/gptq_tensor.c",
    "quant/knapsack.h",
    "quant/knapsack.c",
    "calib/calib.h",
    "calib/sketch.c",
    "calib/gather.c",
    "calib/calibration.c",
    "calib/observer.c",
    "calib/range.c",
    "calib/groups.c",
    "calib/markov.c",
    "calib/equalize.c",
    "infer/infer.h",
    "infer/weights.c",
    "infer/linear.c",
    "infer/int8.c",
    "infer/trellis_forward.c",
    "infer/repack.c",
    "infer/conv.c",
    "format/sort.h",
    "format/sort.c",
    "format/json_member.h",
    "format/json_member.c",
    "format/safetensors.h",
    "format/safetensors.c",
    "format/safetensors_index.c",
    "format/safetensors_writer.c",
    "format/gguf.h",
    "format/gguf.c",
    "format/gguf_write.c",
    "format/gguf_names.c",
    "format/native.h",
    "format/native.c",
    "format/native_write.c",
    "format/calibration.h",
    "format/calibration_read.c",
    "format/calibration_jsonl.c",
    "format/calibration_open.c",
    "format/calibration_write.c",
    "format/compressed_tensors.h",
    "format/compressed_tensors.c",
    "format/flatbuffer.h",
    "format/flatbuffer.c",
    "format/arrow.h",
    "format/arrow_ipc.h",
    "format/arrow_type.c",
    "format/arrow_shared.c",
    "format/arrow_layers.c",
    "format/arrow_import.c",
    "format/arrow_ipc_schema.c",
    "format/arrow_ipc_array.c",
    "format/arrow_ipc_read.c",
    "format/arrow_ipc_write.c",
    "model/folder.h",
    "model/policy.h",
    "model/staging.h",
    "model/fp8.h",
    "model/container.h",
    "model/plan.h",
    "model/method.h",
    "model/run.h",
    "model/open.h",
    "model/config_json.h",
    "model/weights.c",
    "model/modality.c",
    "model/folder.c",
    "model/policy.c",
    "model/fp8.c",
    "model/plan_fp8.c",
    "model/plan_calibration.c",
    "model/plan_equalize.c",
    "model/plan_time.c",
    "model/container_native.c",
    "model/method.c",
    "model/container_compressed.c",
    "model/container_gguf.c",
    "model/container_arrow.c",
    "model/container.c",
    "model/plan_checks.c",
    "model/plan.c",
    "model/staging.c",
    "model/meter.c",
    "model/journal.c",
    "model/config_json.c",
    "model/run_copy.c",
    "model/run_gptq.c",
    "model/run_trials.c",
    "model/run_tensor.c",
    "model/allocate.c",
    "model/run_output.c",
    "model/execute.c",
    "model/result.c",
    "model/open_fp8.c",
    "model/open_compressed.c",
    "model/open_arrow.c",
    "model/open_gguf.c",
    "model/open.c",
    "model/verify.c",
    "model/compare.c",
    "model/dequantize_model.c",
    "model/convert.h",
    "model/arrow_model.c",
    "model/convert_gguf.c",
    "model/convert_layer.c",
    "model/convert_model.c",
]

QUOTED = re.compile(r'\s*#\s*include\s*"([^"]+)"')
SYSTEM = re.compile(r"\s*#\s*include\s*(<[^>]+>)")
DIRECTIVE = re.compile(r"\s*#\s*(if|ifdef|ifndef|endif)\b")
DEFINE = re.compile(r"^\s*#\s*define\s+(\w+)", re.M)
UNDEF = re.compile(r"^\s*#\s*undef\s+(\w+)", re.M)
STATIC = re.compile(r"^(?:[A-Z][A-Z0-9_]*\s+)?static\b[^;{}=(]*?\b(\w+)\s*(?:\(|\[|=|;)", re.M)
SHARED = re.compile(r"^(?:AQ_LIB|AQ_SIMD_LIB|ARROWQUANT_API)\b[^;{}=(]*?\b(\w+)\s*\(", re.M)
TYPE = re.compile(r"^\}\s*(\w+);|^(?:struct|union|enum)\s+(\w+)\s*\{", re.M)


class Disorder(Exception):
    """Something in src/ that the headers must not be built from."""


def room_of(name):
    return name.split("/")[0]


def read(name):
    path = SRC / name
    if not path.is_file():
        raise Disorder(f"src/{name} is in the list of amalgamate.py and does not exist")
    return path.read_text(encoding="utf-8")


def without_comments(text):
    return re.sub(r"/\*.*?\*/", "", text, flags=re.S)


def guard_of(text):
    """The name of a header's include guard, or None."""
    found = re.match(r"\s*#\s*ifndef\s+(\w+_H)\s+#\s*define\s+\1\s", without_comments(text))
    return found.group(1) if found else None


class Joiner:
    """Appends files one after the other, checking what each of them includes."""

    def __init__(self):
        self.done = set()    # names of the files so far
        self.system = set()  # <headers> that are included whatever the switches
        self.parts = []

    def text(self, text):
        self.parts.append(text)

    def include(self, name, target):
        path = (SRC / name).parent.joinpath(target).resolve()
        if SRC not in path.parents:
            raise Disorder(f"src/{name} includes \"{target}\", which is outside src/")
        other = path.relative_to(SRC).as_posix()
        here, there = room_of(name), room_of(other)
        if there == "api":
            allowed = here not in ("api", "simd")
        else:
            allowed = here != "api" and ROOMS.index(there) <= ROOMS.index(here)
        if not allowed:
            raise Disorder(f"src/{name} includes src/{other}: {here}/ may not include {there}/")
        if other not in self.done:
            raise Disorder(f"src/{name} includes src/{other}, which stands after it (or is not) "
                           "in the list of amalgamate.py")

    def file(self, name):
        text = read(name)
        guard = guard_of(text)
        lines, depth = [], 0
        source = text.rstrip("\n").split("\n")
        last = max((i for i, line in enumerate(source) if re.match(r"#\s*endif", line)), default=-1)
        for number, line in enumerate(source):
            if guard and (re.match(rf"\s*#\s*(ifndef|define)\s+{guard}\s*$", line) or number == last):
                continue
            quoted, system = QUOTED.match(line), SYSTEM.match(line)
            if quoted:
                self.include(name, quoted.group(1))
                continue
            if system:
                if system.group(1) in self.system:
                    continue
                if depth == 0:
                    self.system.add(system.group(1))
            directive = DIRECTIVE.match(line)
            if directive:
                depth += -1 if directive.group(1) == "endif" else 1
            lines.append(line)
        if depth != 0:
            raise Disorder(f"src/{name}: #if and #endif do not match")
        body = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")
        self.text(f"/* ---- begin src/{name} ---- */\n\n{body}\n\n/* ---- end src/{name} ---- */\n\n")
        self.done.add(name)

    def files(self, names):
        for name in names:
            self.file(name)

    def result(self):
        return "".join(self.parts).rstrip("\n") + "\n"


def every_file():
    return [MANUAL, API, *KERNELS, SIMD_API, SIMD_EXPORTS, *LIBRARY]


def check_reached():
    listed = every_file()
    for name in listed:
        if listed.count(name) > 1:
            raise Disorder(f"src/{name} is twice in the list of amalgamate.py")
    for path in sorted(SRC.rglob("*")):
        name = path.relative_to(SRC).as_posix()
        if path.is_file() and name not in listed:
            raise Disorder(f"src/{name} is in neither header: put it into the list of amalgamate.py")


def macros_of(name):
    """Macros that are still defined at the end of the file, its include guard aside."""
    text = without_comments(read(name))
    names = dict.fromkeys(DEFINE.findall(text))
    gone = set(UNDEF.findall(text)) | {guard_of(read(name))}
    return [macro for macro in names if macro not in gone]


def check_names():
    """File-local names and internal macros share one file with everybody else's."""
    owner, problems = {}, []
    shared = {word for name in every_file() for word in SHARED.findall(without_comments(read(name)))}
    for name in every_file():
        left = macros_of(name)
        if name.endswith(".c") and left:
            problems.append(f"src/{name} defines {', '.join(left)} and does not #undef at its end")
        text = without_comments(read(name))
        found = set(left) | set(STATIC.findall(text))
        found |= {a or b for a, b in TYPE.findall(text) if (a or b)}
        for word in sorted(found):
            if word in shared:
                problems.append(f"src/{name} defines {word}, which is a function of the library")
            if owner.setdefault(word, name) != name:
                problems.append(f"{word} is defined both in src/{owner[word]} and in src/{name}")
    if problems:
        raise Disorder("\n    ".join(problems))


def version():
    return re.search(r'#define AQ_VERSION "([^"]+)"', read(API)).group(1)


def banner(header, subject):
    return (f"/* {header} {version()}: {subject}\n"
            "   Generated: do not edit this file. Edit src/..., run amalgamate.py. */\n\n")


def license_comment():
    text = (TOP / "LICENSE").read_text(encoding="utf-8").rstrip("\n")
    return f"/*\n{text}\n*/\n"


def kernels(joiner):
    joiner.text("#define AQ_AMALGAMATED\n#ifndef AQ_KERNELS_INCLUDED\n#define AQ_KERNELS_INCLUDED\n\n")
    joiner.files(KERNELS)
    joiner.text("#endif /* AQ_KERNELS_INCLUDED */\n\n")


def undefine(names):
    """Linkage macros always; the rest stays visible to the unit tests of internals."""
    always = [macro for macro in ("AQ_LIB", "AQ_PRINTF") if macro in names]
    rest = [macro for macro in names if macro not in always]
    lines = [f"#undef {macro}" for macro in ["AQ_AMALGAMATED", *always]]
    lines += ["#ifndef AQ_TEST_BUNDLE", *[f"#  undef {macro}" for macro in rest], "#endif"]
    return "\n".join(lines) + "\n"


def build_library():
    joiner = Joiner()
    joiner.text(banner("arrowquant.h", "quantizes diffusion models to INT2, INT4 and INT8."))
    joiner.text(read(MANUAL).rstrip("\n").replace("@VERSION@", version()) + "\n\n")
    joiner.done.add(MANUAL)
    joiner.text("#ifndef ARROWQUANT_H\n#define ARROWQUANT_H\n\n")
    joiner.file(API)
    joiner.text("#endif /* ARROWQUANT_H */\n\n"
                "#if defined(ARROWQUANT_IMPLEMENTATION) && !defined(AQ_IMPLEMENTATION_INCLUDED)\n"
                "#define AQ_IMPLEMENTATION_INCLUDED\n")
    kernels(joiner)
    joiner.files(LIBRARY)
    joiner.text(undefine([macro for name in LIBRARY for macro in macros_of(name)]))
    joiner.text("#endif /* ARROWQUANT_IMPLEMENTATION */\n\n")
    joiner.text(license_comment())
    return joiner.result()


def build_simd():
    joiner = Joiner()
    joiner.text(banner("arrowquant_simd.h", "the kernels of arrowquant.h, usable without it."))
    joiner.file(SIMD_API)
    joiner.text("#if defined(ARROWQUANT_SIMD_IMPLEMENTATION) && "
                "!defined(AQ_SIMD_IMPLEMENTATION_INCLUDED)\n"
                "#define AQ_SIMD_IMPLEMENTATION_INCLUDED\n")
    kernels(joiner)
    joiner.file(SIMD_EXPORTS)
    joiner.text("#undef AQ_AMALGAMATED\n#endif /* ARROWQUANT_SIMD_IMPLEMENTATION */\n\n")
    joiner.text(license_comment())
    return joiner.result()


def main():
    parser = argparse.ArgumentParser(description="Joins src/ into the two headers.")
    parser.add_argument("--check", action="store_true", help="exit 1 when the headers are stale")
    parser.add_argument("-o", metavar="DIR", type=pathlib.Path, default=TOP,
                        help="where the headers are (the top level)")
    options = parser.parse_args()
    try:
        check_reached()
        check_names()
        headers = {"arrowquant.h": build_library(), "arrowquant_simd.h": build_simd()}
    except Disorder as problem:
        print(f"amalgamate.py: {problem}", file=sys.stderr)
        return 1
    stale = False
    for name, text in headers.items():
        path = options.o / name
        if path.is_file() and path.read_bytes() == text.encode("utf-8"):
            continue
        if options.check:
            print(f"{name} differs from src/: edit src/…, run amalgamate.py", file=sys.stderr)
            stale = True
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f".{name}.{os.getpid()}")  # a compiler may be reading the old one
            draft.write_bytes(text.encode("utf-8"))
            draft.replace(path)
            print(f"{name}: {text.count(chr(10))} lines")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
