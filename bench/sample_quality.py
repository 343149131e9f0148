"""Samples of the bundled model, end to end: what weights, methods and activations make of them.

    build/venv/bin/python bench/sample_quality.py [--images N] [--programs DIR] [--table FILE]
                                                  [--sheet FILE] [WORD …]

Quantizes tests/fixtures/digits-dit in each way, draws with examples/sample_dit.c, and compares: PSNR
over the 100 reference noises to the reference samples (range 2), share of them that a classifier
takes for their class; of N more samples (1000; 0: none) the Frechet distance in its feature space, and
their PSNR to those that F32 draws from the same noises, with the deviation of it over hundreds.
"images/s" is by processor time: what one core draws. WORD: only rows that contain one. Prints a
Markdown table, also into --table. --programs: a folder that has aq and sample_dit already. --sheet
writes the samples of F32, INT8, INT4 and INT2 beside each other.

    build/venv/bin/python bench/sample_quality.py --roundings N [--programs DIR]

How much of a PSNR at 8 bits is luck: N times all linear layers are rounded in NumPy on grids of 8 bits, g 64,
that are a little wider than the range of each group and lie at random, as they are and with the least-squares scale
and minimum of their codes; all these roundings have the same error but for that solution.
"""
import argparse
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
TOP = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / "tests/py"))

import numpy as np  # noqa: E402

import dit  # noqa: E402
from tool_models import write_safetensors  # noqa: E402

STATISTICS = dit.REFERENCE / "activations.safetensors"
MOMENTS = dit.REFERENCE / "hessians.safetensors"
VECTORS = dit.REFERENCE / "vectors.safetensors"
LINEAR = ["--quantize-sensitive", "--min-accuracy", "0", "--keep", "*embedding_table*", "--keep",
          "pos_embed*"]
PLAIN = ["--set", "enable_spatial=false"]
METHODS = {"data-free": ["--method", "ptq"],
           "calibrated": ["--method", "ptq", *PLAIN, "--calibration", STATISTICS],
           "GPTQ": ["--method", "gptq", *PLAIN, "--calibration", STATISTICS, "--calibration", MOMENTS]}
TRELLIS = [*PLAIN, "--group-size", "256", "--method", "trellis", "--trellis-states", "4096", "--layer-bits", "proj_out_2=8",
           "--calibration", STATISTICS, "--calibration", MOMENTS]
ACTIVATIONS = {"A16": ["float"], "A8 dynamic": ["dynamic"],
               "A8 static, 1 group": ["static", "--time-groups", "1"],
               "A8 static, 10 uniform": ["static", "--cut", "uniform"],
               "A8 static, 10 optimal": ["static", "--cut", "optimal"]}
# An equalized layer has the groups of the run that quantized it: those of its scaled input.
GROUPS = {"A8 static, 1 group": ["--time-groups", "1"], "A8 static, 10 uniform": ["--time-groups", "10"],
          "A8 static, 10 optimal": ["--time-groups", "10", "--time-cut", "optimal"]}
EQUALIZED = ["--method", "gptq", "--calibration", STATISTICS, "--calibration", MOMENTS, "--set",
             "enable_spatial=true"]
WIDTHS = [("W8 g64", ["--bits", "8", "--group-size", "64"]),
          ("W4 g128", ["--bits", "4", "--group-size", "128"]),
          ("W2 g256", ["--bits", "2", "--group-size", "256"]),
          ("W2 g64", ["--bits", "2", "--group-size", "64"]),
          ("W2 g32", ["--bits", "2", "--group-size", "32"])]


def call(*words):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{done.stderr}")
    return done.stdout


def rows():
    """(name, flags of quantize or None, activations)"""
    for name, bits in WIDTHS:
        for method, flags in METHODS.items():
            for kind, activation in ACTIVATIONS.items():
                yield f"{name} {method} {kind}", [*LINEAR, *bits, *flags], activation
    for kind, activation in ACTIVATIONS.items():
        yield (f"W8 g64 range {kind}", [*LINEAR, *WIDTHS[0][1], "--method", "ptq", "--fast"],
               activation)
    for name, bits in WIDTHS[:2]:
        for kind, activation in ACTIVATIONS.items():
            yield (f"{name} GPTQ, equalized {kind}",
                   [*LINEAR, *bits, *EQUALIZED, *GROUPS.get(kind, [])], activation)
    yield ("W2 g64, first and last layers kept GPTQ A16",
           ["--bits", "2", "--group-size", "64", "--min-accuracy", "0", *METHODS["GPTQ"]], ["float"])
    for bits in ("2", "3", "4"):
        yield (f"W{bits} g256 trellis A16", [*LINEAR, "--bits", bits, *TRELLIS], ["float"])
    yield "W2 g256 edge profile data-free A16", [*LINEAR, "--profile", "edge"], ["float"]
    for states, more in (("256", ["--fast"]), ("1024", [])):
        yield (f"W2 g256 trellis {states} data-free A16",
               [*LINEAR, *WIDTHS[2][1], "--method", "trellis", "--trellis-states", states, *more], ["float"])
    yield ("W2 g256 auto: trellis A16",
           [*LINEAR, *WIDTHS[2][1], *PLAIN, "--calibration", STATISTICS, "--calibration", MOMENTS], ["float"])
    yield "budget of 2.5 bits, trellis A16", [*LINEAR, "--target-bits", "2.5", *TRELLIS], ["float"]
    yield "F32", None, ["float"]


class Judge:
    """The classifier of the fixture and the feature space of its hidden layer."""

    def __init__(self):
        self.t = {k: v.astype(np.float64)
                  for k, v in dit.load(dit.REFERENCE / "judge.safetensors").items()}

    def features(self, x):
        return np.maximum(x.reshape(len(x), -1) @ self.t["fc1.weight"].T + self.t["fc1.bias"], 0)

    def accuracy(self, x, classes):
        scores = self.features(x) @ self.t["fc2.weight"].T + self.t["fc2.bias"]
        return np.mean(scores.argmax(1) == classes)

    def frechet(self, x):
        h = self.features(x)
        c, real = np.cov(h.T), self.t["real.feature_cov"]
        values, vectors = np.linalg.eigh(real)
        root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
        both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ c @ root), 0)).sum()
        return (np.sum((h.mean(0) - self.t["real.feature_mean"]) ** 2) + np.trace(real) +
                np.trace(c) - 2 * both)


def build(folder):
    for name in ("aq", "sample_dit"):
        call("cc", "-O2", TOP / f"examples/{name}.c", "-o", folder / name, "-lpthread", "-lm")


def draw(programs, folder, model, activation, *words):
    """The samples, and how many one core draws in a second of processor time."""
    out = folder / "samples.f32"
    begin = resource.getrusage(resource.RUSAGE_CHILDREN)
    call(programs / "sample_dit", model, "--samples", out, "--out", folder / "sheet.pgm", "--zoom", "1",
         "--calibration", STATISTICS, "--activations", *activation, "--batch", "50", "--threads", "1",
         "--quiet", *words)
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    x = np.fromfile(out, "<f4").reshape(-1, 64).astype(np.float64)
    return x, len(x) / (end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)


def decibels(x, reference):
    return 10 * np.log10(4 / np.mean((x - reference) ** 2))


def over_hundreds(x, reference):
    """The PSNR of all, and its standard deviation over runs of 100 images."""
    parts = [decibels(x[i:i + 100], reference[i:i + 100]) for i in range(0, len(x) - 99, 100)]
    spread = f" ± {np.std(parts, ddof=1):.1f}" if len(parts) > 1 else ""
    return f"{decibels(x, reference):.1f}{spread}"


def write_sheet(path, samples):
    """The first five lines of ten, four times as large, with white between the models."""
    panels = []
    for x in samples:
        pixels = np.clip((x[:50] + 1) * 127.5, 0, 255).astype(np.uint8).reshape(5, 10, 8, 8)
        panels += [pixels.transpose(0, 2, 1, 3).reshape(40, 80), np.full((40, 4), 255, np.uint8)]
    sheet = np.concatenate(panels[:-1], 1).repeat(3, 0).repeat(3, 1)
    import struct
    import zlib

    def chunk(kind, body):
        return (struct.pack(">I", len(body)) + kind + body +
                struct.pack(">I", zlib.crc32(kind + body)))
    lines = np.concatenate([np.zeros((len(sheet), 1), np.uint8), sheet], 1)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" +
                     chunk(b"IHDR", struct.pack(">IIBBBBB", sheet.shape[1], len(sheet), 8, 0, 0, 0, 0)) +
                     chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)) + chunk(b"IEND", b""))


def rounded(weight, random, solve):
    """A weight on grids of 8 bits, g 64, up to 1 % wider than each group, parameters in F16."""
    w = weight.reshape(len(weight), -1, 64).astype(np.float64)
    low, wide = w.min(2, keepdims=True), np.ptp(w, 2, keepdims=True)
    more = 0.01 * random.random(low.shape)
    scale, low = wide * (1 + more) / 255, low - wide * more * random.random(low.shape)
    codes = np.clip(np.rint((w - low) / scale), 0, 255)
    middle, mean = np.full_like(low, 127.5), low + 127.5 * scale
    if solve:
        middle, mean = codes.mean(2, keepdims=True), w.mean(2, keepdims=True)
        scale = (((codes - middle) * (w - mean)).sum(2, keepdims=True) /
                 ((codes - middle) ** 2).sum(2, keepdims=True))
    scale = scale.astype(np.float16).astype(np.float64)
    low = (mean - scale * middle).astype(np.float16).astype(np.float64)
    return (np.clip(np.rint((w - low) / scale), 0, 255) * scale + low).reshape(weight.shape)


def show_roundings(programs, top, count, reference):
    file = "transformer/diffusion_pytorch_model.safetensors"
    original = {name: value.astype(np.float32) for name, value in dit.load(dit.DIGITS / file).items()}
    linear = [name for name in original if name.endswith(".weight") and original[name].ndim == 2 and
              "embedding_table" not in name]
    shutil.copytree(dit.DIGITS, top / "rounded")
    print("| rounding | grids | SQNR dB | PSNR dB | median |\n|---|---|---|---|---|", flush=True)
    for number in range(count):
        for solve in (False, True):
            random, tensors = np.random.default_rng(number), dict(original)
            for name in linear:
                tensors[name] = rounded(original[name], random, solve).astype(np.float32)
            write_safetensors(top / "rounded" / file, tensors)
            x, _ = draw(programs, top, top / "rounded", ["float"], "--noise", VECTORS, "ddim.noise")
            error = sum(np.square(tensors[name] - original[name], dtype=np.float64).sum() for name in linear)
            energy = sum(np.square(original[name], dtype=np.float64).sum() for name in linear)
            each = 10 * np.log10(4 / np.square(x - reference).mean(1))
            print(f"| {number} | {'least squares' if solve else 'range'} | {10 * np.log10(energy / error):.2f} | "
                  f"{decibels(x, reference):.1f} | {np.median(each):.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--programs", type=pathlib.Path)
    parser.add_argument("--table", type=pathlib.Path)
    parser.add_argument("--sheet", type=pathlib.Path)
    parser.add_argument("--roundings", type=int, default=0)
    parser.add_argument("words", nargs="*")
    options = parser.parse_args()
    vectors, judge, table, drawn = dit.load(VECTORS), Judge(), [], {}
    reference = vectors["ddim.samples"].reshape(100, 64).astype(np.float64)
    with tempfile.TemporaryDirectory() as top:
        top = pathlib.Path(top)
        programs = options.programs or top
        if options.programs is None:
            build(top)
        if options.roundings:
            return show_roundings(programs, top, options.roundings, reference)
        again = ("--images", options.images, "--seed", 5)
        plain = draw(programs, top, dit.DIGITS, ["float"], *again) if options.images else None
        made = {}
        table += ["| | MB | PSNR dB | judge | Frechet | PSNR of those | images/s |", "|---|---|---|---|---|---|---|"]
        print("\n".join(table), flush=True)
        for name, flags, activation in rows():
            if options.words and not any(word in name for word in options.words):
                continue
            model = dit.DIGITS
            if flags is not None:
                key = str(flags)
                if key not in made:
                    made[key] = top / str(len(made))
                    call(programs / "aq", "quantize", dit.DIGITS, made[key], "--quiet", *flags)
                model = made[key]
            size = sum(f.stat().st_size for f in (model / "transformer").glob("*.safetensors")) / 1e6
            x, rate = draw(programs, top, model, activation, "--noise", VECTORS, "ddim.noise")
            drawn[name] = x
            far = near = "–"
            if options.images:
                more, rate = draw(programs, top, model, activation, *again) if flags is not None else plain
                far = f"{judge.frechet(more):.2f}"
                near = over_hundreds(more, plain[0]) if flags is not None else "–"
            line = (f"| {name} | {size:.2f} | {decibels(x, reference):.1f} | "
                    f"{judge.accuracy(x, vectors['ddim.class']):.2f} | {far} | {near} | {rate:.1f} |")
            table.append(line)
            print(line, flush=True)
    if options.table:
        options.table.write_text("\n".join(table) + "\n")
    if options.sheet:
        names = ["F32", "W8 g64 data-free A8 dynamic", "W4 g128 GPTQ A8 dynamic",
                 "W2 g64 GPTQ A8 dynamic"]
        write_sheet(options.sheet, [drawn[name] for name in names])


if __name__ == "__main__":
    main()
