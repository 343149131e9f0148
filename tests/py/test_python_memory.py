"""The Python module under tools: no leak in 10^5 calls, threads under a debugging allocator, under the
thread sanitizer and under valgrind. AQ_TOOLS=all lengthens what is short here."""
import os
import re
import shutil
import subprocess
import sys

import pytest

from conftest import build_package

LONG = os.environ.get("AQ_TOOLS") == "all"

LEAKS = '''
import gc, os, sys
import arrowquant
sys.path.insert(0, sys.argv[2])
calls = int(sys.argv[1])
quantizer, config = arrowquant.ArrowQuantV2(), arrowquant.DiffusionQuantConfig(layer_bits={"a*": 8})
weights = {"a": memoryview(bytearray(4 * 512)).cast("B").cast("f", (8, 64)), "b": [1.0, 2.0, 3.0]}
bad = {"a": [float("nan")], "b": "text", "c": weights["a"]}

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

class Fake:  # a producer of DLPack capsules of our own
    def __init__(self, array):
        self.array = array
    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)
    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

class Arrow:
    def __init__(self, array):
        self.array = array
    def __arrow_c_array__(self, requested_schema=None):
        return self.array.__arrow_c_array__()

def one(i):
    made = quantizer.quantize(weights, (2, 4, 8)[i % 3])["a"]
    values = made.dequantize("float16" if i % 2 else "float32")
    memoryview(made), memoryview(values), made.scales, made.zero_points, made.codes.tobytes()
    values.__dlpack__(), made.__arrow_c_array__(), values[1][2], values[1:2]
    quantizer.quantize({"x": Fake(values), "y": Arrow(made)}, 4)
    arrowquant.LayerTable(["n"], [made], {}).__arrow_c_array__()
    made.__reduce__()[0](*made.__reduce__()[1])
    config.copy(bit_width=2) == config
    for call in (lambda: quantizer.quantize(bad), lambda: setattr(config, "bit_width", 5),
                 lambda: arrowquant.load_model("/nowhere"), lambda: values[99], lambda: made.dequantize("f99"),
                 lambda: made.codes.__dlpack__(), lambda: quantizer.quantize({"a": [[1.0], [2.0, 3.0]]})):
        try:
            call()
        except Exception:
            pass
        else:
            raise SystemExit("no error")
    if i % 50 == 0:
        quantizer.quantize_batch_with_progress(weights, 4, lambda *told: None)
        observer = arrowquant.Observer()
        observer.feed("l", 1, weights["a"])

for i in range(calls // 10):
    one(i)
before = resident()
for i in range(calls):
    one(i)
print((resident() - before) // 1024)
'''


@pytest.mark.timeout(3600 if LONG else 300)
def test_no_leak(python, tmp_path, record_property):
    """Resident memory stays flat; each round is some twenty calls, a third of which fail."""
    rounds = 100000 if LONG else 2000
    grown = int(python(LEAKS, str(rounds), str(tmp_path), seconds=3000))
    assert grown < 1024, f"{grown} KiB in {rounds} rounds"
    record_property("figure", f"Python module: {rounds} rounds of some 25 calls, memory grew by {grown} KiB")


def test_reference_counts(module):
    """Of what is passed in, what comes out, and of the types."""
    weights = [[1.0, 2.0] * 40] * 3
    config = module.DiffusionQuantConfig()
    def callback(fraction, message):
        pass
    watched = [weights, config, callback, module.Array, module.QuantizedTensor, module.Context,
               module.Observer, None]
    def work():
        made = module.ArrowQuantV2().quantize_batch_with_progress({"a": weights}, 4, callback,
                                                                  config=config)
        made["a"]["scales"].tolist()
        module.Context().isa
        try:
            module.ArrowQuantV2().quantize({"a": weights, "b": object()}, 4, config=config)
        except TypeError:
            pass
    for _ in range(50):
        work()
    before = [sys.getrefcount(item) for item in watched]
    for _ in range(1000):
        work()
    after = [sys.getrefcount(item) for item in watched]
    assert all(abs(a - b) < 20 for a, b in zip(before, after)), (before, after)


THREADS = '''
import concurrent.futures, random, sys, threading
import arrowquant
folder, model, threads, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
shared, config = arrowquant.ArrowQuantV2(), arrowquant.DiffusionQuantConfig(num_threads=2)
weights = {str(i): memoryview(bytearray(random.Random(i).randbytes(2 * 64 * 96))).cast("B").cast(
    "H", (64, 96)) for i in range(4)}
for view in weights.values():  # finite bfloat16
    for r in range(64):
        for c in range(96):
            view[r, c] = view[r, c] & 0x807F | 0x3F00
expected = {bits: {name: t.codes.tobytes() for name, t in shared.quantize(weights, bits).items()}
            for bits in (2, 4, 8)}
shared.quantize_diffusion_model(model, folder + "/q")
opened = arrowquant.load_model(folder + "/q")
names, door = list(opened), [arrowquant.load_model(folder + "/q")]
observer = arrowquant.Observer()

def work(number):
    order = random.Random(number)
    for round in range(rounds):
        kind = order.randrange(10)
        if kind == 0:
            bits = order.choice((2, 4, 8))
            made = shared.quantize(weights, bits)
            assert {n: t.codes.tobytes() for n, t in made.items()} == expected[bits]
        elif kind == 1:
            made = arrowquant.ArrowQuantV2("base").quantize_batch_with_progress(
                weights, 4, lambda *told: None, config=config)
            assert bytes(made["0"]["quantized_data"]) == expected[4]["0"]
        elif kind == 2:
            opened[order.choice(names)].dequantize().tobytes()
        elif kind == 3:
            config.num_threads = order.randrange(1, 4)
            assert config.copy(bit_width=2).bit_width == 2 and config.to_yaml()
        elif kind == 4:
            observer.feed(str(number % 5), order.randrange(10), shared.quantize(weights, 4)["1"])
        elif kind == 5:
            context = arrowquant.Context(1)
            threading.Timer(0.0005, context.cancel).start()
            try:
                shared.quantize(weights, 8, context=context)
            except arrowquant.QuantizationError as problem:
                assert problem.status == "cancelled"
        elif kind == 6:
            big = memoryview(bytearray(2 << 20)).cast("H", (1024, 1024))
            shared.quantize({"big": big}, 2, config=config)
        elif kind == 7:
            arrowquant.LayerTable(["a"], [shared.quantize(weights, 4)["2"]], {}).__arrow_c_array__()
        elif kind == 8:  # one closes what others read
            try:
                if order.randrange(4) == 0:
                    door[0].close()
                    door[0] = arrowquant.load_model(folder + "/q")
                door[0].describe(order.choice(names)), door[0][order.choice(names)].dequantize(), door[0].path
            except ValueError as problem:
                assert str(problem) == "the model is closed"
        elif number % 10 == 0 and round < 20:
            shared.quantize_diffusion_model(model, f"{folder}/{number}-{round}", config)
    return number

with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    assert list(pool.map(work, range(threads))) == list(range(threads))
print("done")
'''


@pytest.mark.timeout(3600 if LONG else 300)
def test_fifty_threads(python, digits, tmp_path, record_property):
    """Mixed calls under the debugging allocator, which checks every block."""
    rounds = 200 if LONG else 15
    assert python(THREADS, str(tmp_path), str(digits), "50", str(rounds),
                  environment={"PYTHONMALLOC": "debug", "PYTHONFAULTHANDLER": "1"},
                  seconds=3000) == "done\n"
    record_property("figure", f"Python module: 50 threads, {50 * rounds} mixed calls, debugging allocator")


def sanitizer_runtime():
    """The path of gcc's TSan runtime, to be loaded before Python; None: not there."""
    found = subprocess.run(["gcc", "-print-file-name=libtsan.so"], capture_output=True,
                           text=True).stdout.strip()
    return found if os.path.isabs(found) and os.path.exists(found) else None


@pytest.mark.timeout(3600 if LONG else 300)
def test_thread_sanitizer(package, digits, tmp_path, record_property):
    """The extension built with TSan: no report that has a frame of ours."""
    runtime = sanitizer_runtime()
    if runtime is None:
        pytest.skip("gcc has no TSan runtime here")
    level = "-O1" if LONG else "-O0"  # a sixth of the time to compile
    built = build_package(f"python-tsan{level}", "-fsanitize=thread", "-g", level)
    threads, rounds = (50, 30) if LONG else (6, 5)
    done = subprocess.run(
        [*(["setarch", "-R"] if shutil.which("setarch") else []), sys.executable, "-c", THREADS,
         str(tmp_path), str(digits), str(threads), str(rounds)],
        capture_output=True, text=True, timeout=3000 if LONG else 280,
        env={**os.environ, "PYTHONPATH": str(built), "LD_PRELOAD": runtime,
             "TSAN_OPTIONS": "report_signal_unsafe=0:exitcode=0:ignore_noninstrumented_modules=1"})
    if "FATAL: ThreadSanitizer" in done.stderr:
        pytest.skip("TSan cannot run here: " + done.stderr.strip().splitlines()[0])
    assert done.stdout == "done\n", done.stderr[-2000:]
    assert "WARNING: ThreadSanitizer" not in done.stderr, done.stderr[:4000]
    record_property("figure", f"Python module under TSan: {threads} threads, {threads * rounds} mixed calls, "
                              "0 reports")


VALGRIND = '''
import sys
import arrowquant
quantizer = arrowquant.ArrowQuantV2()
for bits in (2, 4, 8):
    made = quantizer.quantize({"a": [[0.5 * i - j for i in range(40)] for j in range(5)]}, bits)["a"]
    values = made.dequantize()
    memoryview(values).tolist(), made.scales.tolist(), made.__arrow_c_array__(), values.__dlpack__()
    arrowquant.LayerTable(["a"], [made], {}).__arrow_c_array__()
big = memoryview(bytearray(640 << 10)).cast("H", (512, 640))  # enough for threads
quantizer.quantize_batch({"big": big}, 2)
quantizer.quantize_diffusion_model(sys.argv[2], sys.argv[1] + "/q",
                                   arrowquant.DiffusionQuantConfig(num_threads=2))
with arrowquant.load_model(sys.argv[1] + "/q") as model:
    for name in model:
        model[name].dequantize("bfloat16")
for bad in ({"a": [float("nan")]}, {"a": "x"}):
    try:
        quantizer.quantize(bad)
    except Exception as problem:
        str(problem)
print("done")
'''


def test_valgrind(package, digits, tmp_path):
    """With malloc as Python's allocator: no error in, and no block lost by, a frame of ours."""
    if shutil.which("valgrind") is None:
        pytest.skip("no valgrind here")
    done = subprocess.run(
        ["valgrind", "--quiet", "--leak-check=full", "--show-leak-kinds=definite", "--num-callers=40",
         "--error-limit=no", sys.executable, "-c", VALGRIND, str(tmp_path), str(digits)],
        capture_output=True, text=True, timeout=290,
        env={**os.environ, "PYTHONPATH": str(package), "PYTHONMALLOC": "malloc",
             "ARROW_QUANT_ISA": "avx2" if os.uname().machine == "x86_64" else "neon"})
    assert done.stdout == "done\n", done.stderr[-2000:]
    reports = re.split(r"^==\d+== \n", done.stderr, flags=re.M)
    ours = [report for report in reports if "arrowquant/_core." in report or "(_core.c" in report]
    assert ours == [], "\n".join(ours)[:4000]
