#!/usr/bin/env python3
"""What the Python module costs: conversions, callbacks, threads, memory, beside the C call, a NumPy
implementation and, where they are installed, optimum-quanto and torchao.

    make bench-python

Everything is measured in one run, by turns, medians. Prints Markdown."""
import ctypes
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

import arrowquant

TOP = pathlib.Path(__file__).resolve().parent.parent


def by_turns(rounds, clock=time.perf_counter, **calls):
    """{name: median seconds}; time.process_time counts what all threads computed, however busy the
    machine is"""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begin = clock()
            call()
            times[name].append(clock() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


# ---------------------------------------------------------------- the same in C

class Spec(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("params", ctypes.c_int), ("bits", ctypes.c_uint32),
                ("group_size", ctypes.c_uint32)]


def c_call(folder, x, bits, group):
    """aq_quantize through ctypes, buffers allocated by each call, as the module does."""
    (folder / "lib.c").write_text('#define ARROWQUANT_IMPLEMENTATION\n#include "arrowquant.h"\n')
    library = folder / "lib.so"
    subprocess.run([os.environ.get("CC", "cc"), "-O2", "-fPIC", "-shared", "-I", TOP,
                    folder / "lib.c", "-o", library, "-lpthread", "-lm"], check=True)
    lib = ctypes.CDLL(str(library))
    context = ctypes.c_void_p()
    assert lib.aq_context_create(0, None, ctypes.byref(context), None) == 0
    spec = Spec(0, 0, bits, group)
    quality = (ctypes.c_double * 6)()
    rows, cols = x.shape
    code_bytes, param_bytes = rows * cols * bits // 8, rows * (cols // group) * 4

    def call():
        codes = ctypes.create_string_buffer(code_bytes)
        params = ctypes.create_string_buffer(param_bytes)
        status = lib.aq_quantize(context, ctypes.byref(spec), ctypes.c_void_p(x.ctypes.data), 1,
                                 ctypes.c_uint64(rows), ctypes.c_uint64(cols), None, codes, params,
                                 None, ctypes.byref(quality), None)
        assert status == 0
    return call


# ---------------------------------------------------------------- peers

NUMPY = '''
import numpy as np

def quantize(x, bits=4, group=128, half=np.float16):
    """Affine groups by min and max, codes packed: the plain vectorized way."""
    groups = x.reshape(-1, group)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    scale = np.maximum((high - low) / (2 ** bits - 1), 1e-12)
    codes = np.clip(np.rint((groups - low) / scale), 0, 2 ** bits - 1).astype(np.uint8)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    back = codes * scale + low
    noise = ((groups - back) ** 2).sum()
    return packed, scale.astype(half), low.astype(half), noise
'''
OURS = "import arrowquant; f = lambda x: arrowquant.ArrowQuantV2().quantize({'x': x}, 4)"
QUANTO = '''
import torch
from optimum.quanto import qint4, quantize_weight, MaxOptimizer
def f(x):
    x = torch.from_numpy(x)
    scale, shift = MaxOptimizer()(x, qint4, 0, 128)
    return quantize_weight(x, qint4, 0, scale, shift, 128)
'''
TORCHAO = '''
import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
def f(x):
    layer = torch.nn.Linear(x.shape[1], x.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(torch.from_numpy(x), requires_grad=False)
    quantize_(layer, Int8WeightOnlyConfig())
    return layer
'''


def peak(setup, side):
    """MB that the process's high-water mark rises by while a [side, side] float32 layer is quantized."""
    program = f"""
import numpy as np
{setup}
x = np.random.default_rng(1).standard_normal((256, 256), dtype=np.float32)
f(x)  # imports, threads
x = np.random.default_rng(1).standard_normal(({side}, {side}), dtype=np.float32)
open('/proc/self/clear_refs', 'w').write('5')
import re
def mark(name): return int(re.search(name + r':\\s+(\\d+)', open('/proc/self/status').read()).group(1))
before = mark('VmRSS')
kept = f(x)
print((mark('VmHWM') - before) / 1e3)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    return float(done.stdout) if done.returncode == 0 else None


def speed(setup, x, rounds=3):
    space = {}
    try:
        exec(setup, space)
        space["f"](x[:256])
    except Exception as problem:
        return None, f"{type(problem).__name__}: {problem}".splitlines()[0]
    return by_turns(rounds, f=lambda: space["f"](x))["f"], ""


def alone(call, rounds=5):
    """Median CPU seconds of the calling thread: what no other thread takes off it."""
    found = []
    for _ in range(rounds):
        begin = time.thread_time()
        call()
        found.append(time.thread_time() - begin)
    return statistics.median(found)


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |")


def main():
    quantizer = arrowquant.ArrowQuantV2()
    one = arrowquant.DiffusionQuantConfig(num_threads=1)
    print(f"arrowquant {arrowquant.__version__}, {arrowquant.Context().isa}, {os.cpu_count()} cores\n")
    row("what", "measured", "bound")
    row("---", "---", "---")

    tiny = {"x": np.ones((1, 32), "f4")}
    made = quantizer.quantize(tiny, 4)["x"]
    times = by_turns(2000, call=lambda: quantizer.quantize(tiny, 4, config=one), dequantize=made.dequantize,
                     view=lambda: memoryview(made.codes), config=lambda: one.copy(bit_width=2))
    row("`quantize` of 32 weights, everything included", f"{times['call'] * 1e3:.3f} ms", "0.1 ms")
    row("`dequantize` of 32 weights", f"{times['dequantize'] * 1e3:.4f} ms", "0.1 ms")
    row("a view of the codes", f"{times['view'] * 1e3:.4f} ms", "0.1 ms")
    row("a copy of a config with one field set", f"{times['config'] * 1e3:.3f} ms", "0.1 ms")

    x = np.random.default_rng(1).standard_normal((2048, 2048), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        c = c_call(pathlib.Path(folder), x, 4, 128)
        all_cores = arrowquant.DiffusionQuantConfig()
        for clock, what in ((time.perf_counter, ""), (time.process_time, ", CPU time")):
            times = by_turns(31, clock, c=c,
                             python=lambda: quantizer.quantize({"x": x}, 4, config=all_cores))
            row(f"16 MiB layer, INT4, Python over C{what}",
                f"{100 * (times['python'] / times['c'] - 1):+.1f} % "
                f"({times['python'] * 1e3:.2f} and {times['c'] * 1e3:.2f} ms)", "5 %")

    layers = {str(i): np.random.default_rng(i).standard_normal((512, 1024), dtype=np.float32)
              for i in range(100)}
    two = arrowquant.DiffusionQuantConfig(num_threads=2)
    times = by_turns(9, one=lambda: quantizer.quantize_batch(layers, 4, config=one),
                     two=lambda: quantizer.quantize_batch(layers, 4, config=two))
    row("100 layers of 2 MiB, two threads over one", f"{times['one'] / times['two']:.2f} × "
        f"({times['one'] * 1e3:.0f} and {times['two'] * 1e3:.0f} ms)", "1.85 ×")
    mine = alone(lambda: quantizer.quantize_batch(layers, 4, config=two))
    row("of which the calling thread does by itself", f"{mine * 1e3:.1f} ms", "")

    def often(fraction, message):
        pass
    often.interval = 0.0
    times = by_turns(2000, plain=lambda: quantizer.quantize_batch(tiny, 4, config=one),
                     told=lambda: quantizer.quantize_batch_with_progress(tiny, 4, often, config=one))
    row("a progress callback", f"{(times['told'] - times['plain']) * 1e3:.4f} ms", "1 ms")

    numpy = NUMPY + "f = quantize\n"
    print()
    row("INT4 g 128 of a float32 layer", "seconds, 64 MiB", "peak MB above the 256 MiB layer", "of NumPy's peak")
    row("---", "---", "---", "---")
    big = np.random.default_rng(2).standard_normal((4096, 4096), dtype=np.float32)
    reference = peak(numpy, 8192)
    for name, setup in [("arrowquant", OURS), ("NumPy, min and max", numpy),
                        ("optimum-quanto, qint4 g 128", QUANTO), ("torchao, int8 weight only", TORCHAO)]:
        seconds, problem = speed(setup, big)
        if seconds is None:
            row(name, f"not measured: {problem}", "", "")
            continue
        used = peak(setup, 8192)
        row(name, f"{seconds:.3f}", f"{used:.0f}" if used is not None else "not measured",
            f"{100 * used / reference:.0f} %" if used is not None and reference else "")


if __name__ == "__main__":
    main()
