"""The Python module while it runs: executors, Ctrl-C, cancellation, asyncio, threads, interpreters."""
import asyncio
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import dit
from tool_models import (files_of, gaussian, llm_tensors, plain_folder, sharded_folder,
                         write_safetensors)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A model of five shards."""
    return sharded_folder(tmp_path_factory.mktemp("shards") / "model", llm_tensors(4), 5)


@pytest.fixture
def large(tmp_path_factory, monkeypatch):
    """A model of 2 GiB that takes no room on the disk and the scalar kernels half a minute."""
    monkeypatch.setenv("ARROW_QUANT_ISA", "scalar")
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    size = 2 * 8192 * 8192
    header = {f"layers.{i}.w.weight": {"dtype": "F16", "shape": [8192, 8192],
                                       "data_offsets": [i * size, (i + 1) * size]}
              for i in range(16)}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + 16 * size)
    return folder


def left_overs(folder):
    return [path.name for path in folder.iterdir() if "tmp-" in path.name]


# ---------------------------------------------------------------- executors

def plain_run(module, shards, folder, **options):
    module.quantize_diffusion_model(shards, folder, module.DiffusionQuantConfig(**options))
    return files_of(folder)


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_executors(module, shards, tmp_path, kind):
    """Files of every kind, byte for byte, with layers that are raised among them."""
    options = {"bit_width": 2, "min_sqnr_db": 9.5}
    pool = (concurrent.futures.ThreadPoolExecutor(3) if kind == "threads" else
            concurrent.futures.ProcessPoolExecutor(
                2, mp_context=multiprocessing.get_context("spawn")))
    seen = []
    with pool:
        result = module.quantize_diffusion_model(
            shards, tmp_path / "spread", module.DiffusionQuantConfig(**options),
            lambda fraction, message: seen.append(fraction), executor=pool)
    assert files_of(tmp_path / "spread") == plain_run(module, shards, tmp_path / "plain", **options)
    assert result["layers_raised"] > 0 and seen[-1] == 1.0 and seen == sorted(seen)
    assert not left_overs(tmp_path)


def test_executors_equalize(module, tmp_path):
    """Plans of several processes find the same scales for the inputs of layers, by themselves."""
    tensors = dit.load(dit.DIGITS / "transformer/diffusion_pytorch_model.safetensors")
    shards = sharded_folder(tmp_path / "model", {name: value for name, value in tensors.items()
                                                 if "blocks.1.attn1" in name}, 3)
    options = {"bit_width": 8, "group_size": 64, "enable_spatial": True, "enable_time_aware": True,
               "calibration": [str(dit.REFERENCE / "activations.safetensors"),
                               str(dit.REFERENCE / "hessians.safetensors")]}
    with concurrent.futures.ProcessPoolExecutor(
            2, mp_context=multiprocessing.get_context("spawn")) as pool:
        module.quantize_diffusion_model(shards, tmp_path / "spread",
                                        module.DiffusionQuantConfig(**options), executor=pool)
    plain = plain_run(module, shards, tmp_path / "plain", **options)
    assert files_of(tmp_path / "spread") == plain
    assert b"aq_input_scales" in b"".join(plain.values())


class Lossy:
    """Runs every other call and lies about the rest; what is missing is made by the caller."""

    def __init__(self):
        self.calls = 0

    def submit(self, function, *args):
        self.calls += 1
        future = concurrent.futures.Future()
        if self.calls % 2:
            future.set_result(function(*args))
        else:
            folder, output = args[2], args[3]
            (pathlib.Path(folder) / f".aq-part-{output}").write_text("{}\n")  # half a record
            (pathlib.Path(folder) / "model-00002-of-00005.safetensors").write_bytes(b"half")
            future.set_result(output)
        return future


def test_workers_that_lie(module, shards, tmp_path):
    executor = Lossy()
    module.quantize_diffusion_model(shards, tmp_path / "spread", executor=executor)
    assert executor.calls == 5
    assert files_of(tmp_path / "spread") == plain_run(module, shards, tmp_path / "plain")


class Failing:
    """The third call raises, the others wait for it to be told to stop."""

    def __init__(self, problem):
        self.pool = concurrent.futures.ThreadPoolExecutor(4)
        self.problem, self.calls = problem, 0

    def submit(self, function, *args):
        self.calls += 1
        if self.calls == 3:
            def call(*ignored):
                raise self.problem
            return self.pool.submit(call)
        return self.pool.submit(function, *args)


def test_executor_failures(module, shards, tmp_path):
    """The worker's exception reaches the caller; nothing is left."""
    with pytest.raises(ZeroDivisionError):
        module.quantize_diffusion_model(shards, tmp_path / "out",
                                        executor=Failing(ZeroDivisionError()))
    assert list(tmp_path.iterdir()) == []
    tensors = llm_tensors(2)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    bad = sharded_folder(tmp_path / "bad", tensors, 3)
    with concurrent.futures.ProcessPoolExecutor(
            2, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(module.QuantizationError) as caught:
            module.quantize_diffusion_model(bad, tmp_path / "out", executor=pool)
    assert caught.value.tensor == "model.layers.1.mlp.up_proj.weight"
    assert caught.value.status == "quantization"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad"]


def test_executor_cancelled(module, large, tmp_path):
    context = module.Context()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        threading.Timer(0.15, context.cancel).start()
        with pytest.raises(module.QuantizationError) as caught:
            module.quantize_diffusion_model(
                large, tmp_path / "out", module.DiffusionQuantConfig(num_threads=1), executor=pool,
                context=context)
    assert caught.value.status == "cancelled"
    assert list(tmp_path.iterdir()) == []


def test_dask(module, package, shards, tmp_path):
    """A local cluster of processes through its concurrent.futures face."""
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(package)
    try:
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                                      local_directory=str(tmp_path / "dask")) as cluster, \
                distributed.Client(cluster) as client:
            result = module.quantize_diffusion_model(shards, tmp_path / "spread",
                                                     executor=client.get_executor())
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    assert result["layers_quantized"] > 0
    assert files_of(tmp_path / "spread") == plain_run(module, shards, tmp_path / "plain")


# ---------------------------------------------------------------- stopping

CALLS = {
    "model": "arrowquant.quantize_diffusion_model(model, 'out', config)",
    "plan": "arrowquant.quantize_diffusion_model(model, 'out', config.copy(target_model_size_mb=600))",
    "factor": "arrowquant.quantize_diffusion_model(wide, 'out', config.copy(method='gptq', "
              "enable_spatial=False, calibration=[wide + '/moments.safetensors']))",
    "executor": "arrowquant.quantize_diffusion_model(model, 'out', config, "
                "executor=concurrent.futures.ThreadPoolExecutor(1))",
    "compare": "[arrowquant.compare_models(model, model) for _ in range(99)]",
    "tensor": "[quantizer.quantize({'a': one}, 2, config=config) for _ in range(99)]",
    "batch": "quantizer.quantize_batch({str(i): noise for i in range(9999)}, 2, config=config)",
    "many": "quantizer.quantize_batch(dict.fromkeys(map(str, range(400000)), [1.0]), 2, config=config)",
    "strided": "quantizer.quantize({'a': np.broadcast_to(noise[0, :1], (1 << 15, 1 << 15))}, 2, config=config)",
    "callback": "quantizer.quantize_diffusion_model(model, 'out', config, lambda *told: time.sleep(60))",
}


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """One layer whose second moments take the scalar kernels half a minute, without a word, to factor."""
    folder, columns = tmp_path_factory.mktemp("wide") / "m", 4096
    plain_folder(folder, {"a.weight": gaussian(1, 32, columns, dtype="float16")})
    write_safetensors(folder / "moments.safetensors", {
        "a.hessian": np.eye(columns, dtype="f4"), "a.hessian_rows": np.array([columns], "i8")})
    return folder


@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c(package, large, wide, tmp_path, call):
    """KeyboardInterrupt within a second of the signal; nothing is left, and the next call works."""
    program = f'''
import arrowquant, concurrent.futures, signal, sys, time
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever started the tests ignores it
model, wide = {str(large)!r}, {str(wide)!r}
config = arrowquant.DiffusionQuantConfig(num_threads=1)
quantizer = arrowquant.ArrowQuantV2()
noise = np.random.default_rng(1).standard_normal((1 << 10, 1 << 10), 'f4')
one = np.tile(noise, (8, 8))
print("go", flush=True)
try:
    {CALLS[call]}
except KeyboardInterrupt:
    print("interrupted", flush=True)
    print(quantizer.simple_test(), flush=True)
else:
    print("too late", flush=True)
'''
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(package)})
    assert process.stdout.readline() == "go\n"
    time.sleep(1.5 if call == "factor" else 0.25)  # it is well on its way
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    answer = process.stdout.readline()
    took = time.monotonic() - began
    rest = process.stdout.readline()
    problem = process.stderr.read()
    process.wait(60)
    assert answer == "interrupted\n", (answer, problem)
    assert rest == "True\n" and process.returncode == 0, problem
    assert took < 1.0
    assert list(tmp_path.iterdir()) == []


class Interrupted:
    """Ctrl-C comes while one of its attributes is looked for, or while it becomes a number."""

    def __init__(self, attribute):
        self.attribute = attribute

    def __getattr__(self, name):
        raise KeyboardInterrupt if name == self.attribute else AttributeError(name)

    def __float__(self):
        raise KeyboardInterrupt


@pytest.mark.parametrize("attribute", ["__dlpack__", "dtype", "__arrow_c_array__", "__arrow_c_stream__",
                                       "__array__"])
def test_no_interrupt_is_swallowed(module, attribute):
    """What runs in the interpreter while weights are taken in may see the signal first."""
    quantizer = module.ArrowQuantV2()
    for weights in (Interrupted(attribute), [1.0, Interrupted("")]):
        for keep_going in (False, True):
            with pytest.raises(KeyboardInterrupt):
                quantizer.quantize_batch({"a": [1.0], "b": weights}, 4, continue_on_error=keep_going)
    if attribute.startswith("__arrow"):
        with pytest.raises(KeyboardInterrupt):
            quantizer.quantize_arrow(Interrupted(attribute))


def test_cancel_from_another_thread(module, large, tmp_path):
    context = module.Context(num_threads=1)
    threading.Timer(0.1, context.cancel).start()
    began = time.monotonic()
    with pytest.raises(module.QuantizationError) as caught:
        module.ArrowQuantV2().quantize_batch(
            dict.fromkeys(map(str, range(400)), np.zeros((2048, 2048), "f4")), 2, context=context)
    assert caught.value.status == "cancelled" and time.monotonic() - began < 5
    with pytest.raises(module.QuantizationError):  # it stays cancelled
        module.quantize_diffusion_model(large, tmp_path / "out", context=context)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- asyncio

def test_async_calls(module, digits, tmp_path):
    plain, awaited = [], []

    async def callback(fraction, message):
        await asyncio.sleep(0)
        awaited.append((fraction, threading.current_thread()))

    async def main():
        quantizer = module.AsyncArrowQuantV2()
        results = await asyncio.gather(
            quantizer.quantize_diffusion_model(digits, tmp_path / "a", progress_callback=callback),
            quantizer.quantize_diffusion_model(
                digits, tmp_path / "b", module.DiffusionQuantConfig(bit_width=8),
                lambda *told: plain.append((told[0], threading.current_thread()))),
            quantizer.quantize({"x": gaussian(1, 64, 64)}, 4),
            quantizer.quantize_batch({"x": gaussian(1, 64, 64)}, 4),
            quantizer.quantize_batch_with_progress({"x": gaussian(1, 64, 64)}, 4, callback),
            quantizer.quantize_from_safetensors(digits, tmp_path / "c"))
        assert (await quantizer.validate_quality(digits, tmp_path / "a"))["passed"]
        return results
    results = asyncio.run(main())
    assert results[0]["bit_width"] == 4 and results[1]["bit_width"] == 8
    assert results[2]["x"].codes == results[3]["x"]["tensor"].codes
    assert files_of(tmp_path / "a") == files_of(tmp_path / "c")
    for seen in (plain, awaited):
        assert seen[-1][0] == 1.0
        assert {thread for _, thread in seen} == {threading.main_thread()}


def test_async_cancellation(module, large, tmp_path):
    async def main():
        quantizer = module.AsyncArrowQuantV2()
        task = asyncio.create_task(quantizer.quantize_diffusion_model(
            large, tmp_path / "out", module.DiffusionQuantConfig(num_threads=1)))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1.0
        assert list(tmp_path.iterdir()) == []  # it waited for the thread
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(quantizer.quantize_batch(
                dict.fromkeys("abcdef", np.zeros((8192, 8192), "f4"))), 0.1)
    asyncio.run(main())


def test_async_errors(module, tmp_path, monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(str(args.exc_value)))

    async def bad(fraction, message):
        raise RuntimeError("async")

    async def main():
        quantizer = module.AsyncArrowQuantV2()
        with pytest.raises(module.ModelNotFoundError):
            await quantizer.quantize_diffusion_model(tmp_path / "none", tmp_path / "out")
        await quantizer.quantize_batch_with_progress(
            {f"{i}": gaussian(1, 512, 512) for i in range(4)}, 4, bad)
    asyncio.run(main())
    assert reported == ["async"]


# ---------------------------------------------------------------- threads and interpreters

def test_threads_run_at_once(module, digits, tmp_path):
    """Eight quantizers, and one that all share: every output is the same."""
    shared = module.ArrowQuantV2()

    def work(i):
        quantizer = shared if i % 2 else module.ArrowQuantV2()
        quantizer.quantize_diffusion_model(digits, tmp_path / str(i))
        return quantizer.quantize({"x": gaussian(i % 3, 300, 300)}, 4)["x"].codes.tobytes()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        codes = list(pool.map(work, range(8)))
    outputs = [files_of(tmp_path / str(i)) for i in range(8)]
    assert all(output == outputs[0] for output in outputs)
    assert [codes[i] for i in range(8)] == [codes[i % 3] for i in range(8)]


def test_gil_is_released(module):
    """Python goes on in another thread while the library works."""
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1
    thread = threading.Thread(target=count)
    thread.start()
    weights = {"a": gaussian(1, 4096, 1024)}
    before = counted[0]
    module.ArrowQuantV2().quantize(weights, 2, config=module.DiffusionQuantConfig(num_threads=1))
    moved = counted[0] - before
    done.set()
    thread.join()
    assert moved > 1000


INTERPRETERS = '''
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
import arrowquant
program = """
import arrowquant, threading
t = arrowquant.ArrowQuantV2().quantize({"a": [[1.0, -2.0, 0.5, 4.0] * 16] * 400}, 8)["a"]
assert t.shape == (400, 64), t.shape
try:
    arrowquant.DiffusionQuantConfig(bit_width=5)
except arrowquant.ConfigurationError as problem:
    assert problem.status == "bit_width"
else:
    raise SystemExit("no error")
"""
for _ in range(3):
    made = interpreters.create()
    problem = interpreters.run_string(made, program)
    assert problem is None, problem
    interpreters.destroy(made)
print(arrowquant.ArrowQuantV2().simple_test())
'''


def other_pythons():
    versions = pathlib.Path.home() / ".pyenv/versions"
    found = [shutil.which(f"python3.{minor}") for minor in range(12, 16)]
    found += [str(path) for path in versions.glob("3.1[2-9].*/bin/python")] if versions.is_dir() else []
    working = []
    for path in found:
        if path and path not in working and subprocess.run(
                [path, "-c", ""], capture_output=True).returncode == 0:
            working.append(path)
    return working


def test_subinterpreters(python):
    assert python(INTERPRETERS) == "True\n"


def test_later_pythons(python):
    """The one build of the stable ABI runs there, each interpreter of its own GIL included."""
    others = other_pythons()
    if not others:
        pytest.skip("no CPython later than 3.11 here")
    for path in others:
        assert python(INTERPRETERS, interpreter=path) == "True\n", path
