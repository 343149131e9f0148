#!/usr/bin/env python3
"""`aq quantize` at scale: `make bench-scale`, or  build/venv/bin/python bench/scale.py [--billions N] [--folder DIR]

Makes a BF16 model of 7 billion parameters in 9 shards (14 GB), quantizes it at every bit width with
`enable_streaming` off and on (`--trellis`: at 2 bits by `method: trellis`, 256 states, fast, alone; `--once`: without streaming alone), compares the two outputs byte for byte, and removes everything again.
Then the same with a seventh of the size, one giant tensor, and ten thousand tiny ones; `--only WORD`
runs one of these. Prints a Markdown table: time, Mweights/s, CPU seconds (what else runs on the machine changes these
little), the process's own peak memory (VmHWM), and the time as a ratio to `cp` of the input followed by
`sync` in the same run; then the counts, and whether time grows faster than size. Needs NumPy and Linux.
"""
import argparse
import filecmp
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

TOP = pathlib.Path(__file__).resolve().parent.parent
HIDDEN, MLP = 4096, 11008
LIMIT_MIB = 512


class Weights:
    """Gaussian BF16 bytes, σ = 0.02: one block of 32 million, read from another place each time."""

    def __init__(self):
        rng = np.random.default_rng(1)
        block = (rng.standard_normal(1 << 25, dtype=np.float32) * np.float32(0.02)).view(np.uint32)
        self.block, self.at = (block >> 16).astype(np.uint16), 0

    def write(self, file, count):
        while count:
            self.at = (self.at * 5 + 12345) % (len(self.block) // 2)
            part = self.block[self.at:self.at + min(count, len(self.block) // 2)]
            file.write(part.data)
            count -= len(part)


def shard(path, shapes, weights):
    header, offset = {}, 0
    for name, shape in shapes:
        size = 2 * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in shapes:
            weights.write(file, int(np.prod(shape, dtype=np.int64)))


def make(folder, shards, weights):
    """shards: a list of lists of (name, shape). Returns the number of weights."""
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["ScaleForCausalLM"]}\n')
    weight_map = {}
    for number, shapes in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard(folder / name, shapes, weights)
        weight_map.update({tensor: name for tensor, _ in shapes})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(int(np.prod(s, dtype=np.int64)) for shapes in shards for _, s in shapes)


def llm(billions, shard_count):
    """Decoder layers of 202 million weights until the size is reached, spread over the shards."""
    layers = max(1, round(billions * 1e9 / (4 * HIDDEN * HIDDEN + 3 * HIDDEN * MLP)))
    tensors = []
    for i in range(layers):
        stem = f"model.layers.{i}"
        tensors += [(f"{stem}.self_attn.{p}_proj.weight", (HIDDEN, HIDDEN)) for p in "qkvo"]
        tensors += [(f"{stem}.mlp.gate_proj.weight", (MLP, HIDDEN)), (f"{stem}.mlp.up_proj.weight", (MLP, HIDDEN)),
                    (f"{stem}.mlp.down_proj.weight", (HIDDEN, MLP)), (f"{stem}.input_layernorm.weight", (HIDDEN,))]
    tensors.append(("model.embed_tokens.weight", (32000, HIDDEN)))
    return [tensors[i * len(tensors) // shard_count:(i + 1) * len(tensors) // shard_count]
            for i in range(shard_count)]


def peak_of(process):
    """The process's own VmHWM in MiB, watched until it ends."""
    peak = 0
    while process.poll() is None:
        try:
            for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = max(peak, int(line.split()[1]) / 1024)
        except OSError:
            break
        time.sleep(0.005)
    return peak


def cpu_seconds():
    """Of all programs that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def quantize(model, out, *flags):
    begin, before = time.monotonic(), cpu_seconds()
    process = subprocess.Popen([TOP / "build/aq", "quantize", model, out, "--quiet", *map(str, flags)])
    peak = peak_of(process)
    if process.wait():
        sys.exit(f"aq quantize {model} failed")
    return time.monotonic() - begin, cpu_seconds() - before, peak


def copy_seconds(model, out):
    begin = time.monotonic()
    subprocess.run(["cp", "-r", "--reflink=never", model, out], check=True)
    subprocess.run(["sync"], check=True)
    seconds = time.monotonic() - begin
    shutil.rmtree(out)
    return seconds


def same(a, b):
    files = sorted(p.relative_to(a) for p in a.rglob("*") if p.is_file())
    if files != sorted(p.relative_to(b) for p in b.rglob("*") if p.is_file()):
        return False
    return all(filecmp.cmp(a / f, b / f, shallow=False) for f in files)


def measure(label, folder, shards, weights, runs, more=(), switches=("false", "true")):
    """One model: made, copied for comparison, quantized, removed. Returns its rows: (label, bits,
    streaming, seconds and CPU seconds a weight, peak, whether the outputs are the same)."""
    count = make(folder / "model", shards, weights)
    subprocess.run(["sync"], check=True)
    copying, all_rows = copy_seconds(folder / "model", folder / "copy"), []
    for bits in runs:
        rows = []
        for streaming in switches:
            out = folder / f"out-{streaming}"
            seconds, cpu, peak = quantize(folder / "model", out, "--bits", bits, "--set",
                                     f"enable_streaming={streaming}", "--min-accuracy", 0, *more)
            rows.append((streaming, seconds, cpu, peak))
        equal = len(switches) < 2 or same(folder / "out-false", folder / "out-true")
        for streaming, seconds, cpu, peak in rows:
            all_rows.append((label, bits, streaming, seconds / count, cpu / count, peak, equal))
            switch = "on" if streaming == "true" else "off"
            print(f"| {label} | {count / 1e9:.2f} | {bits} | {switch} | {seconds:.1f} "
                  f"| {count / seconds / 1e6:.0f} | {cpu:.1f} | {peak:.0f} | {seconds / copying:.2f} "
                  f"| {'–' if len(switches) < 2 else 'yes' if equal else 'NO'} |", flush=True)
        for streaming in switches:
            shutil.rmtree(folder / f"out-{streaming}")
    shutil.rmtree(folder / "model")
    return all_rows


def summary(rows):
    """The counts, and the growth of time; whether all is well."""
    peak, equal = max(row[5] for row in rows), sum(row[6] for row in rows) // 2
    if {row[2] for row in rows} == {"false"}: # nothing to compare
        print(f"\n{len(rows)} runs; largest peak {peak:.0f} MiB of {LIMIT_MIB} allowed")
        return peak <= LIMIT_MIB
    print(f"\n{len(rows)} runs, {equal} of {len(rows) // 2} outputs the same with and without streaming; largest "
          f"peak {peak:.0f} MiB of {LIMIT_MIB} allowed")
    for streaming in ("false", "true"):
        each = {row[0]: row[3:5] for row in rows if row[1] == 4 and row[2] == streaming}
        if "whole" in each and "a seventh" in each:
            growth = [a / b for a, b in zip(each["whole"], each["a seventh"])]
            print(f"streaming {'on' if streaming == 'true' else 'off'}: a weight of the whole costs {growth[0]:.2f} "
                  f"times the time and {growth[1]:.2f} times the CPU time of one of a seventh")
    return peak <= LIMIT_MIB and equal == len(rows) // 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--billions", type=float, default=7.0)
    parser.add_argument("--only", metavar="WORD", default="", help="only models whose label contains it")
    parser.add_argument("--trellis", action="store_true", help="2 bits by a trellis, nothing else")
    parser.add_argument("--once", action="store_true", help="without streaming alone: no outputs to compare")
    parser.add_argument("--folder", help="where there is room; default: build/")
    options = parser.parse_args()
    parent = pathlib.Path(options.folder) if options.folder else TOP / "build"
    parent.mkdir(exist_ok=True)
    needed, free = options.billions * 2e9 * 2.2, shutil.disk_usage(parent).free
    if free < needed:
        print(f"skipped: {parent} has {free / 1e9:.0f} GB free, {needed / 1e9:.0f} GB are needed")
        return 0
    folder = pathlib.Path(tempfile.mkdtemp(prefix="scale-", dir=parent))
    try:
        weights = Weights()
        print("| model | 10⁹ weights | bits | streaming | s | Mweights/s | CPU s | peak MiB "
              "| time / (cp + sync) | same bytes |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        rows = int(options.billions / 7 * 1e9 / 16384)
        tiny = [[(f"layers.{s * 1000 + i}.w.weight", (256, 128)) for i in range(1000)] for s in range(10)]
        models = [("whole", llm(options.billions, 9), (2, 4, 8)),
                  ("a seventh", llm(options.billions / 7, 9), (4,)),
                  ("one tensor", [[("layers.0.w.weight", (rows, 16384))]], (4,)),
                  ("10,000 tensors", tiny, (4,))]
        more = ()
        if options.trellis:
            models = [("whole", models[0][1], (2,))]
            more = ("--method", "trellis", "--trellis-states", 256, "--fast")
        found = []
        for label, shards, bits in models:
            if options.only in label:
                found += measure(label, folder, shards, weights, bits, more,
                                 ("false",) if options.once else ("false", "true"))
        if not found:
            sys.exit(f"no model is called {options.only}")
        good = summary(found)
        if not good:
            print(f"FAILED: a peak above {LIMIT_MIB} MiB, or outputs that differ")
        return 0 if good else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
