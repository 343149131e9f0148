#!/usr/bin/env python3
"""The kernels beside their peers: `make bench-kernels`, or  build/venv/bin/python bench/kernels.py

    --only quantize,memory,scalar,threads,dots,model   some of the tables
    --repeats N       rounds (default 7)
    --model-weights N weights of the model that `aq quantize` is timed with (default 10^9)
    --folder DIR      where that model and its output lie (default build/bench)

Everything runs in one process on one thread, in turns: each round times every candidate once, and a
ratio is the median over the rounds of the quotient of two times of one round, with the least and the
greatest in brackets. Times are processor time of the thread (threads and the model: wall time), so a
busy machine disturbs the caches but is not counted. Every buffer is written before it is timed, and
those of the memory table are larger than any cache. Prints Markdown, also to build/bench/kernels.md.

Peers, each where it is there: ggml in the package pywhispercpp, and another build of it in the folder
that AQ_GGML names (libggml-base.so, libggml-cpu.so); NumPy; PyTorch; memset, memcpy, reading.
"""
import argparse
import ctypes
import glob
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time

import numpy as np

TOP = pathlib.Path(__file__).resolve().parent.parent
OUT = TOP / "build/bench"
CC = os.environ.get("CC", "cc")
PLAIN = ["-fno-tree-vectorize", "-fno-tree-slp-vectorize"]


# ---------------------------------------------------------------- ArrowQuant

class Tensor(ctypes.Structure):
    _fields_ = [("rows", ctypes.c_uint64), ("cols", ctypes.c_uint64), ("bits", ctypes.c_uint32),
                ("group", ctypes.c_uint32), ("symmetric", ctypes.c_uint32),
                ("fast", ctypes.c_uint32), ("threads", ctypes.c_uint32),
                ("weights", ctypes.c_void_p), ("codes", ctypes.c_void_p),
                ("params", ctypes.c_void_p), ("out", ctypes.c_void_p),
                ("quality", ctypes.c_double * 5), ("count", ctypes.c_uint64)]


def library(name, flags):
    """bench/kernels.c as a shared library."""
    target, source = OUT / f"{name}.so", TOP / "bench/kernels.c"
    OUT.mkdir(parents=True, exist_ok=True)
    subprocess.run([CC, "-O2", *flags, "-DAQ_BENCH_SHARED", "-shared", "-fPIC", "-I", TOP, source,
                    "-o", target, "-lpthread", "-lm"], check=True)
    found = ctypes.CDLL(str(target))
    found.bench_best.restype = ctypes.c_char_p
    found.bench_cosine.restype = ctypes.c_double
    found.bench_cosine.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p,
                                   ctypes.c_uint64, ctypes.c_uint64]
    found.bench_read.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    found.bench_read_two.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    found.bench_dots.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p,
                                 ctypes.c_void_p]
    return found


def at(array):
    return ctypes.c_void_p(array.ctypes.data)


def tensor_of(rows, cols, bits, group, halves=None, fast=False, symmetric=False, threads=1,
              out=None):
    """A tensor with its buffers, all of them touched."""
    codes = np.full(rows * (cols * bits // 8 + 4), 0x5A, np.uint8)
    params = np.full(rows * (cols // group + 1) * 8, 0x2B, np.uint8)
    tensor = Tensor(rows, cols, bits, group, symmetric, fast, threads)
    tensor.codes, tensor.params = codes.ctypes.data, params.ctypes.data
    tensor.kept = [codes, params, halves, out]
    if halves is not None:
        tensor.weights = halves.ctypes.data
    if out is not None:
        tensor.out = out.ctypes.data
    return tensor


def must(status):
    if status != 0:
        raise SystemExit(f"ArrowQuant says {status}")


def quantizer(lib, isa, tensor):
    return lambda: must(lib.bench_quantize(isa.encode(), ctypes.byref(tensor), 0))


def sqnr(lib, isa, tensor):
    must(lib.bench_quantize(isa.encode(), ctypes.byref(tensor), 1))
    _, original, _, error, _ = tensor.quality
    return 10 * np.log10(original / error)


# ---------------------------------------------------------------- timing

def race(jobs, repeats, clock=time.thread_time, before=lambda: None):
    """{name: seconds of each round}; the jobs take turns, the first round is thrown away. `before`
    each of them something may be done that does not count."""
    times = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            before()
            begin = clock()
            job()
            taken = clock() - begin
            if turn:
                times[name].append(max(taken, 1e-9))
    return times


def rate(times, amount):
    return amount / statistics.median(times)


def ratios(ours, theirs):
    """How many times as fast as they we are, round by round."""
    every = sorted(their / our for our, their in zip(ours, theirs))
    return statistics.median(every), every[0], every[-1]


def spread(values, digits=1, unit="×"):
    middle, low, high = values
    return f"**{middle:.{digits}f} {unit}** ({low:.{digits}f}–{high:.{digits}f})"


def share(ours, theirs, factor=1.0):
    middle, low, high = ratios(ours, theirs)
    return spread((100 * factor * middle, 100 * factor * low, 100 * factor * high), 0, "%")


LINES = []


def say(line=""):
    print(line, flush=True)
    LINES.append(line)


def table(*head):
    say("| " + " | ".join(head) + " |")
    say("|" + "---|" * len(head))


def row(*cells):
    say("| " + " | ".join(str(cell) for cell in cells) + " |")


# ---------------------------------------------------------------- peers

class Ggml:
    """Two shared libraries: the quantizers are in -base, some rows with instructions in -cpu."""
    TYPES = {"Q4_0": (2, 32, 18, "q4_0"), "Q8_0": (8, 32, 34, "q8_0"), "Q2_K": (10, 256, 84, "q2_K"),
             "Q4_K": (12, 256, 144, "q4_K")}  # number, weights and bytes of a block, name of rows

    def __init__(self, name, base, cpu):
        self.name = name
        self.base = ctypes.CDLL(str(base))
        self.cpu = ctypes.CDLL(str(cpu))
        self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.base.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
                                                  ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
                                                  ctypes.c_void_p]
        self.instructions = [what for what in ("avx2", "fma", "f16c", "avx512", "avx512_vnni", "neon")
                             if getattr(self.cpu, f"ggml_cpu_has_{what}", lambda: 0)()]
        self.wide = self.registers(base)
        # The F16 table of its conversions belongs to a context.
        init = getattr(self.cpu, "ggml_cpu_init", None)
        if init:
            init()

    @staticmethod
    def registers(base):
        """The widest registers of its quantizers, as far as objdump can tell."""
        if not shutil.which("objdump"):
            return "unknown"
        code = subprocess.run(["objdump", "-d", "--no-show-raw-insn", base], capture_output=True,
                              text=True, check=True).stdout
        return next((name for mark, name in (("%zmm", "AVX-512"), ("%ymm", "AVX")) if mark in code),
                    "SSE2 at most")

    def bits(self, kind):
        return 8 * self.TYPES[kind][2] / self.TYPES[kind][1]

    def buffer(self, kind, count):
        return np.full(count // self.TYPES[kind][1] * self.TYPES[kind][2], 0x5A, np.uint8)

    def quantize(self, kind, weights):
        """The public call."""
        rows, cols = weights.shape
        out = self.buffer(kind, weights.size)
        number = self.TYPES[kind][0]
        return lambda: self.base.ggml_quantize_chunk(number, at(weights), at(out), 0, rows, cols,
                                                     None)

    def rows_alone(self, kind, weights):
        """The inner routine, a row at a time."""
        routine = getattr(self.cpu, "quantize_row_" + self.TYPES[kind][3])
        routine.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        out = self.buffer(kind, weights.size)
        return lambda: routine(at(weights), at(out), weights.size)

    def sqnr(self, kind, weights):
        out, back = self.buffer(kind, weights.size), np.empty_like(weights)
        self.base.ggml_quantize_chunk(self.TYPES[kind][0], at(weights), at(out), 0, *weights.shape,
                                      None)
        routine = getattr(self.base, "dequantize_row_" + self.TYPES[kind][3])
        routine.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        routine(at(out), at(back), weights.size)
        wide = weights.astype(np.float64)
        return 10 * np.log10((wide ** 2).sum() / ((wide - back) ** 2).sum())

    def dequantize(self, kind, out):
        codes = self.buffer(kind, out.size)
        codes[:] = 0
        routine = getattr(self.base, "dequantize_row_" + self.TYPES[kind][3])
        routine.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
        return lambda: routine(at(codes), at(out), out.size)


def find_ggml():
    """[the package's, the one of AQ_GGML], those that are there."""
    found, site = [], sysconfig.get_paths()["purelib"]
    base = glob.glob(f"{site}/pywhispercpp.libs/libggml-base*")
    cpu = glob.glob(f"{site}/pywhispercpp.libs/libggml-cpu*")
    if base and cpu:
        found.append(Ggml("ggml, package", base[0], cpu[0]))
    folder = os.environ.get("AQ_GGML")
    if folder:
        found.append(Ggml("ggml, AQ_GGML", pathlib.Path(folder) / "libggml-base.so",
                          pathlib.Path(folder) / "libggml-cpu.so"))
    return found


def numpy_int4(weights):
    """Min/max, INT4, groups of 128, F16 parameters, packed: as one writes it by hand."""
    x = weights.reshape(-1, 128)
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    scale = ((high - low) / 15).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint((x - low) / scale), 0, 15).astype(np.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4


def torch_int4(torch, weights):
    x = weights.view(-1, 128)
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    scale = ((high - low) / 15).half().float()
    codes = ((x - low) / scale).round_().clamp_(0, 15).to(torch.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4


def find_torch():
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(1)
    return torch


# ---------------------------------------------------------------- tables

def gaussian_bf16(rows, cols):
    """BF16 bits, and the same values as F32."""
    wide = np.random.default_rng(1).standard_normal((rows, cols), dtype=np.float32) * np.float32(.02)
    bits = wide.view(np.uint32)
    halves = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return halves, (halves.astype(np.uint32) << 16).view(np.float32)


CASES = [("INT4 g128, least squares", 4, 128, False, "Q4_K", 20, 20.6),
         ("INT4 g128, fast", 4, 128, True, "Q4_0", 2, None),
         ("INT8 g64, least squares", 8, 64, False, "Q8_0", 4, 45.5),
         ("INT8 g64, fast", 8, 64, True, "Q8_0", 4, 45.5),
         ("INT2 g256, least squares", 2, 256, False, "Q2_K", 15, 9.3)]


def quantize_table(lib, peers, repeats):
    best, torch = lib.bench_best().decode(), find_torch()
    rows, cols = 2048, 4096
    halves, wide = gaussian_bf16(rows, cols)
    count, jobs, tensors = rows * cols, {}, {}
    for name, bits, group, fast, *_ in CASES:
        tensors[name] = tensor_of(rows, cols, bits, group, halves, fast)
        for isa in [best] + (["avx2"] if best == "avx512" else []):
            jobs[name, isa] = quantizer(lib, isa, tensors[name])
    for peer in peers:
        for kind in Ggml.TYPES:
            jobs[kind, peer.name] = peer.quantize(kind, wide)
        jobs["Q8_0 rows", peer.name] = peer.rows_alone("Q8_0", wide)
    jobs["INT4 g128 min/max", "NumPy"] = lambda: numpy_int4(wide)
    if torch:
        tensor = torch.from_numpy(wide)
        jobs["INT4 g128 min/max", "PyTorch"] = lambda: torch_int4(torch, tensor)
    times = race(jobs, repeats)
    say("### Quantizing\n")
    say(f"{rows} × {cols} Gaussian weights; ArrowQuant from BF16, the others from F32.\n")
    table("what", "by", "bits a weight", "Mweights/s", "SQNR dB")
    for (name, who), taken in times.items():
        if name in tensors:
            case = next(case for case in CASES if case[0] == name)
            bits, figure = case[1] + 32 / case[2], f"{sqnr(lib, best, tensors[name]):.2f}"
        elif "rows" in name or who in ("NumPy", "PyTorch"):
            bits, figure = 8.5 if "rows" in name else 4.25, ""
        else:
            peer = next(peer for peer in peers if peer.name == who)
            bits, figure = peer.bits(name), f"{peer.sqnr(name, wide):.2f}"
        row(name, f"ArrowQuant, {who}" if name in tensors else who, f"{bits:.2f}",
            f"{rate(taken, count) / 1e6:.0f}", figure)
    say()
    table("what", "ISA", "against", "ratio", "wanted")
    for name, _, _, _, kind, bar, _ in CASES:
        for isa in [best] + (["avx2"] if best == "avx512" else []):
            for peer in peers:
                row(name, isa, f"{kind}, {peer.name}",
                    spread(ratios(times[name, isa], times[kind, peer.name])), f"{bar} ×")
                if kind == "Q8_0":
                    row(name, isa, f"Q8_0 rows, {peer.name}",
                        spread(ratios(times[name, isa], times["Q8_0 rows", peer.name]), 2), "")
            for who in ("NumPy", "PyTorch") if name == "INT4 g128, fast" else ():
                if ("INT4 g128 min/max", who) in times:
                    row(name, isa, f"the same by {who}",
                        spread(ratios(times[name, isa], times["INT4 g128 min/max", who])), "")
    say()


def isas_of(lib):
    best = lib.bench_best().decode()
    return ["avx2", "avx512"] if best == "avx512" else [best]


def memory_table(lib, peers, repeats):
    rows = cols = 8192
    count = rows * cols
    halves, wide = gaussian_bf16(512, cols)
    wide = np.tile(wide, (rows // 512, 1))
    out = np.full((rows, cols), 0.5, np.float32)
    libc = ctypes.CDLL(None)
    libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    libc.memcpy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
    turn = iter(range(1, 1 << 30))
    jobs = {"memset": lambda: libc.memset(at(out), next(turn) % 100 + 1, 4 * count)}
    for bits, group in ((2, 256), (4, 128), (8, 64)):
        tensor = tensor_of(rows, cols, bits, group, out=out)
        for isa in isas_of(lib):
            def job(isa=isa, tensor=tensor):
                must(lib.bench_dequantize(isa.encode(), ctypes.byref(tensor), 32))
            jobs[f"INT{bits} g{group} to F32, {isa}"] = job
    for peer in peers:
        jobs[f"Q4_0 to F32, {peer.name}"] = peer.dequantize("Q4_0", out)
    jobs["memcpy"] = lambda: libc.memcpy(at(out), at(wide), 4 * count)
    times = race(jobs, repeats)
    say("### Dequantizing and comparing\n")
    say(f"{rows} × {cols} weights, {4 * count >> 20} MiB as F32, written over and over.\n")
    table("what", "GB/s written", "of memset", "wanted")
    for name, taken in times.items():
        row(name, f"{rate(taken, 4 * count) / 1e9:.1f}",
            "" if name == "memset" else share(taken, times["memset"]),
            "70 %" if name.startswith("INT") else "")
    say()
    np.multiply(wide, np.float32(1.01), out=out)
    jobs = {"reading one array": lambda: lib.bench_read(at(out), count // 2),
            "reading two arrays": lambda: lib.bench_read_two(at(wide), at(out), count // 2)}
    for isa in isas_of(lib):
        jobs[f"cosine, {isa}"] = lambda isa=isa: lib.bench_cosine(isa.encode(), at(wide), at(out),
                                                                 rows, cols)
    flat = wide.reshape(-1), out.reshape(-1)
    jobs["cosine, NumPy"] = lambda: np.dot(*flat) / np.sqrt(np.dot(flat[0], flat[0]) *
                                                            np.dot(flat[1], flat[1]))
    times = race(jobs, repeats)
    single = [2 * taken for taken in times["reading one array"]]  # as many bytes as of two
    reading = [min(pair) for pair in zip(single, times["reading two arrays"])]
    table("what", "GB/s read", "of reading", "wanted")
    for name, taken in times.items():
        size = 4 * count if "one" in name else 8 * count
        row(name, f"{rate(taken, size) / 1e9:.1f}",
            "" if "reading" in name else share(taken, reading),
            "90 %" if "cosine, a" in name or "neon" in name else "")
    say()


def scalar_table(lib, repeats):
    """Against the scalar kernels as they are written: no compiler made vectors of them."""
    plain = library("kernels-plain", PLAIN)
    rows, cols, few = 1024, 4096, 16
    halves, wide = gaussian_bf16(rows, cols)
    other = (wide * np.float32(1.01)).astype(np.float32)
    out, jobs = np.full((rows, cols), 0.5, np.float32), {}
    for bits, group in ((2, 256), (4, 128), (8, 64)):
        tensor = tensor_of(rows, cols, bits, group, halves, out=out)
        for where, isa in [(plain, "scalar")] + [(lib, isa) for isa in isas_of(lib)]:
            jobs[f"quantize INT{bits}", isa] = quantizer(where, isa, tensor)
            def job(where=where, isa=isa, tensor=tensor):
                must(where.bench_dequantize(isa.encode(), ctypes.byref(tensor), 32))
            small = tensor_of(few, cols, bits, group, halves, out=out)
            must(where.bench_quantize(isa.encode(), ctypes.byref(small), 0))
            def job_in_cache(where=where, isa=isa, tensor=small):
                must(where.bench_dequantize_often(isa.encode(), ctypes.byref(tensor), rows // few))
            jobs[f"dequantize INT{bits}, to memory", isa] = job
            jobs[f"dequantize INT{bits}, in the cache", isa] = job_in_cache
    for where, isa in [(plain, "scalar")] + [(lib, isa) for isa in isas_of(lib)]:
        jobs["cosine", isa] = lambda where=where, isa=isa: where.bench_cosine(
            isa.encode(), at(wide), at(other), rows, cols)
    times = race(jobs, repeats)
    say("### Against our scalar kernels\n")
    say(f"{rows} × {cols} weights (in the cache: {few} rows, {rows // few} times); the scalar kernels "
        f"compiled by `{CC} -O2 {' '.join(PLAIN)}`.\n")
    table("what", "scalar, Mweights/s", *isas_of(lib), "wanted of AVX2")
    for name in dict.fromkeys(name for name, _ in times):
        row(name, f"{rate(times[name, 'scalar'], rows * cols) / 1e6:.0f}",
            *(spread(ratios(times[name, isa], times[name, "scalar"])) for isa in isas_of(lib)), "4 ×")
    say()


def threads_table(lib, repeats):
    best, rows, cols = lib.bench_best().decode(), 8192, 4096
    halves, _ = gaussian_bf16(512, cols)
    halves = np.tile(halves, (rows // 512, 1))
    out, jobs = np.full((rows, cols), 0.5, np.float32), {}
    for bits, group in ((2, 256), (4, 128), (8, 64)):
        for threads in (1, 2):
            tensor = tensor_of(rows, cols, bits, group, halves, threads=threads, out=out)
            jobs[f"quantize INT{bits} g{group}", threads] = quantizer(lib, best, tensor)
            def job(tensor=tensor):
                must(lib.bench_dequantize(best.encode(), ctypes.byref(tensor), 32))
            jobs[f"dequantize INT{bits} g{group} to F32", threads] = job
    times, busy = race(jobs, repeats, time.perf_counter), race(jobs, repeats, time.process_time)
    say("### Two threads against one\n")
    say("Wall time, which needs two free cores; and twice the processor time of one thread by that of "
        "two, which is the most that two free cores can give.\n")
    table("what", "ratio of the medians", "ratio of the quickest", "by processor time", "wanted")
    for name in dict.fromkeys(name for name, _ in times):
        one, two = times[name, 1], times[name, 2]
        middle, low, high = ratios(busy[name, 2], busy[name, 1])
        row(name, f"{statistics.median(one) / statistics.median(two):.2f} ×",
            f"{min(one) / min(two):.2f} ×", spread((2 * middle, 2 * low, 2 * high), 2),
            "1.85 ×" if name.startswith("quantize") else "")
    say()


def dots_table(lib, repeats):
    rows, cols, jobs = 4096, 4096, {}
    x = np.random.default_rng(2).integers(-128, 128, cols, dtype=np.int8)
    sums = np.zeros(cols // 32, np.int32)
    for bits, group in ((2, 256), (4, 128), (4, 32), (8, 64)):
        tensor = tensor_of(rows, cols, bits, group)
        for isa in ["scalar", *isas_of(lib)]:
            jobs[f"INT{bits} g{group}", isa] = lambda isa=isa, tensor=tensor: lib.bench_dots(
                isa.encode(), ctypes.byref(tensor), at(x), at(sums))
    times = race(jobs, repeats)
    say("### Dot products of packed codes with 8-bit integers\n")
    say(f"A {rows} × {cols} matrix with one vector, every group's sum exact.\n")
    table("what", "ISA", "Gweights/s", "GB/s of codes", "against scalar")
    for (name, isa), taken in times.items():
        bits = int(name[3])
        row(name, isa, f"{rate(taken, rows * cols) / 1e9:.1f}",
            f"{rate(taken, rows * cols * bits / 8) / 1e9:.1f}",
            spread(ratios(taken, times[name, "scalar"])) if isa != "scalar" else "")
    say()


# ---------------------------------------------------------------- the whole tool

def write_model(folder, count):
    """One shard with matrices of 4096 × 4096, BF16; the number of weights."""
    halves, _ = gaussian_bf16(4096, 4096)
    matrices = max(1, count // halves.size)
    header = {f"layers.{i}.proj.weight": {"dtype": "BF16", "shape": [4096, 4096],
                                          "data_offsets": [i * 2 * halves.size, (i + 1) * 2 * halves.size]}
              for i in range(matrices)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"architectures": ["BenchForCausalLM"]}\n')
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(matrices):
            file.write(halves.data)
    return matrices * halves.size


def copy_raw(source, target, bytes_out):
    """Reads the whole input, writes as many bytes as the output has, syncs."""
    block = bytearray(4 << 20)
    view, wanted = memoryview(block), bytes_out
    with open(source, "rb", buffering=0) as file, open(target, "wb", buffering=0) as out:
        while True:
            got = file.readinto(block)
            if not got:
                break
            part = min(got, wanted)
            out.write(view[:part])
            wanted -= part
        os.fsync(out.fileno())


def model_table(lib, repeats, count, folder):
    aq, folder = TOP / "build/aq", pathlib.Path(folder) / "kernels-model"
    shutil.rmtree(folder, ignore_errors=True)
    best, cores = lib.bench_best().decode(), os.cpu_count()
    halves, _ = gaussian_bf16(4096, 4096)
    try:
        count = write_model(folder / "in", count)
        say("### The whole tool\n")
        say(f"`aq quantize --quiet` of {count / 1e9:.2f} billion BF16 weights in the page cache, wall time; "
            "the quality of each layer is measured on the way, as always.\n")
        table("bits", "Mweights/s", "kernels × cores", "raw read, write, fsync", "of the slower one",
              "kernels' part of the processor time", "wanted")
        for bits, group in ((4, 128), (2, 256), (8, 64)):
            out = folder / "out"
            command = [aq, "quantize", folder / "in", out, "--bits", str(bits), "--group-size",
                       str(group), "--min-accuracy", "0", "--quiet"]
            subprocess.run(command, check=True)
            size = (out / "model.safetensors").stat().st_size
            tensor = tensor_of(4096, 4096, bits, group, halves)
            kernel = race({"kernel": lambda: must(lib.bench_quantize(best.encode(),
                                                                     ctypes.byref(tensor), 1))},
                          repeats)["kernel"]
            spent = []

            def tidy(out=out):  # removing half a gigabyte takes a while as well
                shutil.rmtree(out, ignore_errors=True)
                (folder / "raw").unlink(missing_ok=True)

            def run(command=command, spent=spent):
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(command, check=True)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            times = race({"tool": run,
                          "raw": lambda: copy_raw(folder / "in/model.safetensors", folder / "raw", size)},
                         repeats, time.perf_counter, tidy)
            tool = rate(times["tool"], count)
            limits = cores * rate(kernel, halves.size), rate(times["raw"], count)
            row(f"INT{bits} g{group}", f"{tool / 1e6:.0f}", f"{limits[0] / 1e6:.0f}",
                f"{limits[1] / 1e6:.0f}", f"**{100 * tool / min(limits):.0f} %** "
                f"(quickest {100 * count / min(times['tool']) / min(limits[0], count / min(times['raw'])):.0f} %)",
                f"{100 * count / rate(kernel, halves.size) / statistics.median(spent):.0f} %", "60 %")
        say()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- all

def machine():
    name = "unknown processor"
    if os.path.exists("/proc/cpuinfo"):
        for line in open("/proc/cpuinfo", encoding="utf-8"):
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    compiler = subprocess.run([CC, "--version"], capture_output=True, text=True,
                              check=True).stdout.splitlines()[0]
    load = os.getloadavg()[0]
    return f"{name}, {os.cpu_count()} cores, load {load:.1f} at the start; {compiler}"


def main():
    parser = argparse.ArgumentParser(description="The kernels beside their peers.")
    parser.add_argument("--only", default="quantize,memory,scalar,threads,dots,model")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model-weights", type=int, default=10 ** 9)
    parser.add_argument("--folder", default=OUT)
    options = parser.parse_args()
    only = options.only.split(",")
    lib, peers = library("kernels", []), find_ggml()
    say(f"{machine()}. Medians of {options.repeats} rounds (least–greatest).\n")
    for peer in peers:
        say(f"- {peer.name}: rows with {', '.join(peer.instructions) or 'no extensions'}; quantizers: {peer.wide}.")
    say()
    if "quantize" in only:
        quantize_table(lib, peers, options.repeats)
    if "memory" in only:
        memory_table(lib, peers, options.repeats)
    if "scalar" in only:
        scalar_table(lib, options.repeats)
    if "threads" in only:
        threads_table(lib, options.repeats)
    if "dots" in only:
        dots_table(lib, options.repeats)
    if "model" in only:
        model_table(lib, options.repeats, options.model_weights, options.folder)
    (OUT / "kernels.md").write_text("\n".join(LINES) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
