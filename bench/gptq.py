#!/usr/bin/env python3
"""GPTQ of one layer beside a plain PyTorch implementation, both on all cores, in turns.

    build/venv/bin/python bench/gptq.py [-n ROUNDS] [--size N]

INT4 in groups of 128 of a layer [N, N] (4096) with the second moments of its input. PyTorch does what
GPTQ programs do: damped Cholesky factor, its inverse, the factor of that, then blocks of 128 columns
with lazy updates, scales from minimum and maximum. bench/bench_gptq.c, built as a library, measures
how many fused multiply-adds the cores make when they do nothing else. Prints Markdown: medians.
"""
import argparse
import ctypes
import pathlib
import statistics
import subprocess
import tempfile
import time

import numpy as np
import torch

TOP = pathlib.Path(__file__).resolve().parent.parent
GROUP, BLOCK, BITS = 128, 128, 4


class Spec(ctypes.Structure):
    """aq_quant_spec."""
    _fields_ = [("code", ctypes.c_int), ("params", ctypes.c_int), ("bits", ctypes.c_uint32),
                ("group_size", ctypes.c_uint32), ("fit", ctypes.c_int), ("states", ctypes.c_uint32),
                ("rotation", ctypes.c_uint32)]


def library(folder):
    target = pathlib.Path(folder) / "gptq.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-I", TOP, TOP / "bench/bench_gptq.c", "-o", target,
                    "-lpthread", "-lm"], check=True)
    lib = ctypes.CDLL(str(target))
    lib.bench_peak.restype = ctypes.c_double
    return lib


def layer(size):
    """Weights, and moments of inputs whose neighbours resemble each other: 0.97^|i − j|."""
    rng = np.random.default_rng(1)
    weights = (0.03 * rng.standard_normal((size, size))).astype(np.float32)
    place = np.arange(size)
    scale = 1.0 + place % 7
    moments = 0.97 ** np.abs(place[:, None] - place[None, :]) * scale[:, None] * scale[None, :]
    return weights, moments.astype(np.float32)


class Ours:
    name = "ArrowQuant"

    def __init__(self, lib, weights, moments):
        self.lib, self.weights, self.moments = lib, weights, moments
        self.codes = np.empty((weights.shape[0], weights.shape[1] * BITS // 8), np.uint8)
        self.params = np.empty((weights.shape[0], weights.shape[1] // GROUP, 2), np.float16)

    def run(self):
        spec = Spec(0, 0, BITS, GROUP, 0, 0, 0)  # affine, F16, least squares
        at = [ctypes.c_void_p(array.ctypes.data)
              for array in (self.weights, self.moments, self.codes, self.params)]
        rows, cols = (ctypes.c_uint64(n) for n in self.weights.shape)
        status = self.lib.aq_quantize_gptq(None, ctypes.byref(spec), at[0], 1, rows, cols, at[1], at[2],
                                           at[3], None, None, None)
        if status != 0:
            raise RuntimeError(f"aq_quantize_gptq: status {status}")

    def result(self):
        codes = np.stack([self.codes & 15, self.codes >> 4], -1).reshape(self.weights.shape)
        scale, least = (np.repeat(self.params[:, :, i].astype(np.float32), GROUP, 1) for i in (0, 1))
        return scale * codes + least


class PyTorch:
    name = "PyTorch"

    def __init__(self, weights, moments):
        self.weights, self.moments = torch.from_numpy(weights), torch.from_numpy(moments)
        self.out = None

    def run(self):
        weights, moments = self.weights.clone(), self.moments.clone()
        size, top = moments.shape[0], 2 ** BITS - 1
        moments.diagonal().add_(0.01 * moments.diagonal().mean())
        inverse = torch.linalg.cholesky(
            torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
        out = torch.empty_like(weights)
        for begin in range(0, size, BLOCK):
            end = min(begin + BLOCK, size)
            block, errors = weights[:, begin:end].clone(), torch.empty(weights.shape[0], end - begin)
            factor = inverse[begin:end, begin:end]
            for i in range(end - begin):
                if (begin + i) % GROUP == 0:
                    group = weights[:, begin + i:begin + i + GROUP]
                    low = group.min(1).values.clamp(max=0)
                    scale = (group.max(1).values.clamp(min=0) - low) / top
                    zero = torch.round(-low / scale)
                column = block[:, i]
                code = torch.clamp(torch.round(column / scale) + zero, 0, top)
                rounded = scale * (code - zero)
                out[:, begin + i] = rounded
                error = (column - rounded) / factor[i, i]
                block[:, i:] -= error[:, None] * factor[i, i:][None, :]
                errors[:, i] = error
            weights[:, end:] -= errors @ inverse[begin:end, end:]
        self.out = out

    def result(self):
        return self.out.numpy()


def output_error(weights, rounded, moments):
    """‖(W − Ŵ)X‖² / ‖WX‖² for the inputs that the moments stand for."""
    error = (rounded - weights).astype(np.float64)
    signal, wide = weights.astype(np.float64), moments.astype(np.float64)
    return float(((error @ wide) * error).sum() / ((signal @ wide) * signal).sum())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-n", type=int, default=5, help="rounds")
    parser.add_argument("--size", type=int, default=4096, help="rows and columns")
    options = parser.parse_args()
    weights, moments = layer(options.size)
    useful = options.size ** 3 / 3 + float(options.size) ** 3
    with tempfile.TemporaryDirectory() as folder:
        lib = library(folder)
        candidates, times, peaks = [Ours(lib, weights, moments), PyTorch(weights, moments)], {}, []
        for _ in range(options.n):
            for each in candidates:
                peaks.append(lib.bench_peak(0))
                begin = time.perf_counter()
                each.run()
                times.setdefault(each.name, []).append(time.perf_counter() - begin)
        peak = statistics.median(peaks)
        print(f"{torch.get_num_threads()} threads, at most {peak / 1e9:.0f} GFLOP/s")
        print("| GPTQ, INT4 g 128 | s | GFLOP/s useful | of the peak | output error |")
        print("|---|---|---|---|---|")
        for each in candidates:
            taken = statistics.median(times[each.name])
            print(f"| {each.name} | {taken:.2f} | {useful / taken / 1e9:.1f} | "
                  f"{100 * useful / taken / peak:.0f} % | "
                  f"{output_error(weights, each.result(), moments):.2e} |")
        ratio = statistics.median(b / a for a, b in zip(*(times[each.name] for each in candidates)))
        print(f"\nPyTorch takes {ratio:.1f} times as long.")


if __name__ == "__main__":
    main()
