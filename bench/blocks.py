#!/usr/bin/env python3
"""Block codes of GGUF against ggml's own quantizers: speed on one thread and SQNR, in one process,
in turns.

    build/venv/bin/python bench/blocks.py [-n ROUNDS] [--isa NAME] [--ggml LIBRARY] [--types NAMES]

ggml is the one in the wheel of pywhispercpp (tests/py/requirements-heavy.txt), or LIBRARY, a libggml-base
of another build. "plain" is its search without importance, "ones" the one with an importance of one for
each column. Figures are medians of the thread's own time, so that other work on the machine counts
little; the ratio is ours to the faster of the two.
"""
import argparse
import ctypes
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests/py"))
import ggml  # noqa: E402

CODES = {"Q8_0": (3, 8, 32, 34), "Q4_0": (4, 4, 32, 18), "Q4_1": (5, 4, 32, 20),
         "Q4_K": (6, 4, 256, 144), "Q2_K": (7, 2, 256, 84)}
SOURCE = """
#define ARROWQUANT_IMPLEMENTATION
#include "arrowquant.h"
aq_context *bench_context(int isa) {
    aq_context *context = NULL;
    if (aq_context_create((aq_isa)isa, NULL, &context, NULL) == AQ_OK) context->num_threads = 1;
    return context;
}
int bench_quantize(aq_context *context, const char *name, const float *x, size_t rows, size_t cols,
                   void *blocks) {
    for (int code = 0; code < (int)AQ_CODE_COUNT; code++) {
        aq_quant_spec spec = aq_block_spec((aq_code)code);
        if (strcmp(name, aq_code_name((aq_code)code)) == 0)
            return (int)aq_quantize(context, &spec, x, AQ_DTYPE_F32, rows, cols, NULL, blocks, NULL,
                                    NULL, NULL, NULL);
    }
    return -1;
}
"""


class Ours:
    def __init__(self, isa):
        folder = tempfile.mkdtemp()
        source, target = pathlib.Path(folder, "bench.c"), pathlib.Path(folder, "bench.so")
        source.write_text(SOURCE)
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-I", TOP, source, "-o", target,
                        "-lpthread", "-lm"], check=True)
        self.lib = ctypes.CDLL(str(target))
        self.lib.bench_context.restype = ctypes.c_void_p
        self.lib.bench_quantize.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p,
                                            ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
        names = ["auto", "scalar", "avx2", "avx512", "neon"]
        self.context = self.lib.bench_context(names.index(isa))
        if not self.context:
            sys.exit(f"this machine lacks {isa}")

    def quantize(self, name, x):
        _, _, weights, size = CODES[name]
        out = np.zeros(x.size // weights * size, np.uint8)
        status = self.lib.bench_quantize(self.context, name.encode(), x.ctypes.data, x.shape[0],
                                         x.shape[1], out.ctypes.data)
        assert status == 0
        return out


def digits():
    path = TOP / "tests/fixtures/digits-dit/transformer/diffusion_pytorch_model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    rows = []
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__" and len(entry["shape"]) == 2:
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            rows.append((np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16)
                        .view(np.float32))
    flat = np.concatenate(rows)
    return flat[:flat.size // 256 * 256].reshape(-1, 256).copy()


def sqnr(x, y):
    x = x.astype(np.float64)
    return 10 * np.log10((x ** 2).sum() / ((x - y) ** 2).sum())


def timed(call, *words):
    start = time.thread_time()
    blocks = call(*words)
    return time.thread_time() - start, blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=7, help="rounds")
    parser.add_argument("--isa", default="auto")
    parser.add_argument("--ggml", metavar="LIBRARY")
    parser.add_argument("--types", default=",".join(CODES))
    given = parser.parse_args()
    ours, theirs = Ours(given.isa), ggml.Ggml(given.ggml)
    rng = np.random.default_rng(1)
    data = {"gaussian": (rng.standard_normal((512, 1024)) * 0.02).astype(np.float32),
            "laplace": (rng.laplace(size=(512, 1024)) * 0.02).astype(np.float32),
            "digits": digits()}
    print("type  weights    Mweights/s: ours  plain   ones  ratio   dB: ours   plain    ones")
    for name in given.types.split(","):
        for kind, x in data.items():
            ones = np.ones(x.shape[1], np.float32)
            small = x[:len(x) // 4]
            speed, blocks = {"ours": [], "plain": [], "ones": []}, {}
            for _ in range(given.n):
                for who, call, of in (("ours", lambda y: ours.quantize(name, y), x),
                                      ("plain", lambda y: theirs.quantize(name, y), small),
                                      ("ones", lambda y: theirs.quantize(name, y, ones), small)):
                    seconds, _ = timed(call, of)
                    speed[who].append(of.size / seconds / 1e6)
            blocks = {"ours": ours.quantize(name, x), "plain": theirs.quantize(name, x),
                      "ones": theirs.quantize(name, x, ones)}
            mid = {who: statistics.median(values) for who, values in speed.items()}
            figure = {who: sqnr(x, theirs.dequantize(name, made, x.size).reshape(x.shape))
                      for who, made in blocks.items()}
            print(f"{name:5} {kind:9} {mid['ours']:16.1f} {mid['plain']:6.1f} {mid['ones']:6.1f} "
                  f"{mid['ours'] / max(mid['plain'], mid['ones']):6.2f} {figure['ours']:10.3f} "
                  f"{figure['plain']:7.3f} {figure['ones']:7.3f}")


if __name__ == "__main__":
    main()
