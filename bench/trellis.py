#!/usr/bin/env python3
"""Trellis codes beside all of ggml's types that it quantizes to: on Gaussian weights, without data, one thread.

    AQ_GGML=FOLDER make bench-trellis          or build/venv/bin/python bench/trellis.py [-n ROUNDS]

FOLDER holds libggml-base.so and libggml-cpu.so, built for this machine; without it there are no peers.
Rates are processor time of the thread, medians of rounds in turns: weights quantized, decoded to F32, and
multiplied with one vector of 8-bit integers (256 MiB of codes in turn: the integer products of a strip,
and ggml's vec_dot). Bits are all that is stored. Prints Markdown.
"""
import argparse
import ctypes
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np

TOP = pathlib.Path(__file__).resolve().parent.parent
ROWS, COLS = 256, 1024
SOURCE = """
#define ARROWQUANT_IMPLEMENTATION
#include "arrowquant.h"
static aq_quant_spec spec_of(uint32_t bits, uint32_t states, int fast) {
    aq_quant_spec spec = {AQ_CODE_TRELLIS, AQ_PARAM_F16, bits, 256, AQ_FIT_LEAST_SQUARES, states};
    if (fast) spec.fit = AQ_FIT_FAST;
    return spec;
}
static aq_context *context(void) {
    static aq_context *made;
    if (!made && aq_context_create(AQ_ISA_AUTO, NULL, &made, NULL) == AQ_OK) made->num_threads = 1;
    return made;
}
int quantize(uint32_t bits, uint32_t states, int fast, const float *w, uint64_t rows, uint64_t cols,
             void *codes, void *params) {
    aq_quant_spec spec = spec_of(bits, states, fast);
    return (int)aq_quantize(context(), &spec, w, AQ_DTYPE_F32, rows, cols, NULL, codes, params, NULL,
                            NULL, NULL);
}
int decode(uint32_t bits, uint32_t states, const void *codes, const void *params, uint64_t rows,
           uint64_t cols, float *out) {
    aq_quant_spec spec = spec_of(bits, states, 0);
    return (int)aq_dequantize(context(), &spec, codes, params, NULL, rows, cols, AQ_DTYPE_F32, out,
                              NULL);
}
void dots(uint32_t bits, uint32_t states, const uint8_t *codes, size_t strips, const int8_t *x,
          size_t cols, int32_t *out) {
    const struct aq_trellis_kernels *own = aq_simd_trellis(aq_kernels_of(context()));
    const aq_trellis_code *code = aq_trellis_code_of(bits, states);
    size_t strip, begin;
    for (strip = 0; strip < strips; strip++, codes += 256 * cols * bits / 8)
        for (begin = 0; begin < cols; begin += 256)
            own->dots(code, codes, 256, begin, 256, x + begin, cols, 1, out);
}
void vec_dots(void (*dot)(int, float *, size_t, const void *, size_t, const void *, size_t, int),
              const uint8_t *w, size_t rows, size_t row_bytes, size_t cols, const void *x, float *y) {
    for (size_t row = 0; row < rows; row++) dot((int)cols, y, 0, w + row * row_bytes, 0, x, 0, 1);
}
"""
PEERS = {"Q1_0": 41, "IQ1_S": 19, "TQ1_0": 34, "IQ1_M": 29, "IQ2_XXS": 16, "TQ2_0": 35, "Q2_0": 42,
         "IQ2_XS": 17, "IQ2_S": 22, "Q2_K": 10, "IQ3_XXS": 18, "IQ3_S": 21, "Q3_K": 11, "IQ4_XS": 23,
         "MXFP4": 39, "IQ4_NL": 20, "NVFP4": 40, "Q4_0": 2, "Q4_K": 12, "Q4_1": 3, "Q5_0": 6, "Q5_K": 13,
         "Q5_1": 7, "Q6_K": 14, "Q8_0": 8}
OURS = [(2, 256, 1), (2, 256, 0), (2, 1024, 1), (2, 1024, 0), (2, 4096, 0), (3, 1024, 0), (3, 4096, 0), (4, 1024, 0),
        (4, 4096, 0)]


class Traits(ctypes.Structure):
    """What ggml_get_type_traits returns."""
    _fields_ = [("name", ctypes.c_char_p), ("block", ctypes.c_int64), ("interleave", ctypes.c_int64),
                ("bytes", ctypes.c_size_t), ("quantized", ctypes.c_bool),
                ("to_float", ctypes.c_void_p), ("from_float", ctypes.c_void_p)]


class CpuTraits(ctypes.Structure):
    """What ggml_get_type_traits_cpu returns."""
    _fields_ = [("from_float", ctypes.c_void_p), ("vec_dot", ctypes.c_void_p),
                ("vec_dot_type", ctypes.c_int), ("rows", ctypes.c_int64)]


def at(array):
    return ctypes.c_void_p(array.ctypes.data)


class Trellis:
    def __init__(self, lib, bits, states, fast, memory):
        self.lib, self.key = lib, (bits, states)
        self.fast, self.memory = fast, memory
        self.name = f"trellis, {bits} bits, {states} states" + (", fast" if fast else "")
        self.codes = np.zeros(ROWS * COLS * bits // 8, np.uint8)
        self.params = np.zeros(ROWS * COLS // 256 * 2, np.uint8)
        self.bits = 8 * (self.codes.size + self.params.size) / ROWS / COLS
        self.multiplied = memory.size // (256 * COLS * bits // 8) * 256 * COLS
        self.x, self.y = np.full(COLS, 77, np.int8), np.zeros(256, np.int32)

    def quantize(self, w):
        assert self.lib.quantize(*self.key, self.fast, at(w), ctypes.c_uint64(ROWS),
                                 ctypes.c_uint64(COLS), at(self.codes), at(self.params)) == 0

    def decode(self, out):
        assert self.lib.decode(*self.key, at(self.codes), at(self.params), ctypes.c_uint64(ROWS),
                               ctypes.c_uint64(COLS), at(out)) == 0

    def multiply(self):
        self.lib.dots(*self.key, at(self.memory), ctypes.c_size_t(self.multiplied // 256 // COLS),
                      at(self.x), ctypes.c_size_t(COLS), at(self.y))


class Peer:
    def __init__(self, lib, base, cpu, name, memory):
        self.lib, self.base, self.type = lib, base, PEERS[name]
        self.name, self.memory = f"ggml {name}", memory
        traits = base.ggml_get_type_traits(self.type).contents
        own = cpu.ggml_get_type_traits_cpu(self.type).contents
        self.to_float = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p,
                                         ctypes.c_int64)(traits.to_float)
        self.row_bytes = COLS // traits.block * traits.bytes
        self.blocks = np.zeros(ROWS * self.row_bytes, np.uint8)
        self.bits = 8 * self.row_bytes / COLS
        self.vec_dot = own.vec_dot
        self.rows = memory.size // self.row_bytes
        self.multiplied = self.rows * COLS
        self.x, self.y = np.zeros(8 * COLS, np.uint8), np.zeros(16, np.float32)
        self.importance = np.ones(COLS, np.float32)

    def quantize(self, w):
        self.base.ggml_quantize_chunk(self.type, w.ctypes.data, self.blocks.ctypes.data, 0, ROWS, COLS,
                                      self.importance.ctypes.data)

    def decode(self, out):
        self.to_float(self.blocks.ctypes.data, out.ctypes.data, ROWS * COLS)

    def multiply(self):
        self.lib.vec_dots(ctypes.c_void_p(self.vec_dot), at(self.memory), ctypes.c_size_t(self.rows),
                          ctypes.c_size_t(self.row_bytes), ctypes.c_size_t(COLS), at(self.x),
                          at(self.y))


def candidates(memory):
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "bench.c").write_text(SOURCE)
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-I", TOP, folder / "bench.c", "-o",
                    folder / "bench.so", "-lpthread", "-lm"], check=True)
    lib = ctypes.CDLL(str(folder / "bench.so"))
    found = [Trellis(lib, *key, memory) for key in OURS]
    where = os.environ.get("AQ_GGML")
    if where:
        base, cpu = (ctypes.CDLL(str(pathlib.Path(where, name)), mode=ctypes.RTLD_GLOBAL)
                     for name in ("libggml-base.so", "libggml-cpu.so"))
        cpu.ggml_cpu_init()
        base.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
        cpu.ggml_get_type_traits_cpu.restype = ctypes.POINTER(CpuTraits)
        base.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
                                             ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
                                             ctypes.c_void_p]
        found += [Peer(lib, base, cpu, name, memory) for name in PEERS]
    return found


def timed(call, *words):
    start = time.thread_time()
    call(*words)
    return time.thread_time() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=3, help="rounds")
    rounds = parser.parse_args().n
    rng = np.random.default_rng(1)
    memory = np.frombuffer(rng.bytes(1 << 28), np.uint8)
    w = (rng.standard_normal((ROWS, COLS)) * 0.02).astype(np.float32)
    out, times = np.zeros_like(w), {}
    codes = candidates(memory)
    for code in codes: # once before anything is timed: tables that are made at first use
        code.quantize(w)
    for _ in range(rounds):
        for code in codes:
            own = times.setdefault(code.name, ([], [], []))
            own[0].append(timed(code.quantize, w))
            own[1].append(timed(code.decode, out))
            own[2].append(timed(code.multiply))
    print("| code | bits | SQNR, dB | quantized, Mweights/s | to F32, Mweights/s | one vector, Gweights/s |")
    print("|---|---|---|---|---|---|")
    for code in codes:
        code.decode(out)
        ratio = (w.astype(float) ** 2).sum() / ((w - out.astype(float)) ** 2).sum()
        made, read, multiplied = (statistics.median(some) for some in times[code.name])
        print(f"| {code.name} | {code.bits:.4g} | {10 * np.log10(ratio):.2f} | {w.size / made / 1e6:.3g} | "
              f"{w.size / read / 1e6:.3g} | {code.multiplied / multiplied / 1e9:.3g} |")


if __name__ == "__main__":
    main()
