#!/usr/bin/env python3
"""What methods do to the outputs of the layers: build/venv/bin/python bench/quality.py

Quantizes the bundled model with the statistics of its reference run, through the tool, and judges each
linear layer in float64: ‖(W − Ŵ)X‖² / ‖WX‖², on the inputs that the calibration saw and on those of a
run from another noise. Prints Markdown: means, layers, and bits chosen under a budget.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests/py"))
import aq_reader  # noqa: E402
import dit  # noqa: E402

FILE = "transformer/diffusion_pytorch_model.safetensors"
BOTH = ["--calibration", dit.REFERENCE / "activations.safetensors",
        "--calibration", dit.REFERENCE / "hessians.safetensors"]
TRELLIS = ["--method", "trellis", "--trellis-states", "4096", "--group-size", "256"]
METHODS = [("least squares", []), ("R2Q", ["--method", "r2q"]),
           ("importance", ["--method", "ptq", *BOTH]), ("GPTQ", ["--method", "gptq", *BOTH]),
           ("trellis, data-free", [*TRELLIS]), ("trellis", [*TRELLIS, *BOTH])]
RULE = [f"--layer-bits={pattern}" for pattern in (
    "*emb*=8", "proj_out_*=8", "*transformer_blocks.0.*=4", "*transformer_blocks.3.*=4", "*=2")]


def quantize(out, *words):
    subprocess.run([TOP / "build/aq", "quantize", dit.DIGITS, out, "--quiet", "--quantize-sensitive",
                    "--min-accuracy", "0", "--set", "enable_spatial=false", *map(str, words)], check=True)
    return out


def seen_moments(weights):
    stored = dit.load(dit.REFERENCE / "hessians.safetensors")
    return {name: stored[name[:-7].replace("to_k", "to_q").replace("to_v", "to_q")].astype(np.float64)
            for name in weights}


def fresh_moments(weights):
    found = dit.second_moments(dit.collect(dit.Model(), *dit.fresh_noise(7)))
    return {name: found[name[:-7]] for name in weights}


def errors(out, weights, moments):
    """A kept layer has none."""
    quantized, found = aq_reader.read(out / FILE)[0], {}
    for name, w in weights.items():
        e = w - quantized[name].astype(np.float64) if name in quantized else np.zeros_like(w)
        found[name] = np.sum(e @ moments[name] * e) / np.sum(w @ moments[name] * w)
    return found


def stored_bits(out):
    entries = [entry for entry in json.loads((out / "arrowquant_report.json").read_text())["tensors"]
               if len(entry["shape"]) == 2]
    return (8 * sum(entry["output_bytes"] for entry in entries) /
            sum(int(np.prod(entry["shape"])) for entry in entries))


def means(folder, weights, seen, fresh):
    print("| bits | method | stored bits | seen inputs | less | unseen inputs | less |")
    print("|---|---|---|---|---|---|---|")
    layers = {}
    for bits, group in ((4, 128), (2, 64)):
        first = None
        for method, words in METHODS:
            if method == "R2Q" and bits != 2:
                continue
            out = quantize(folder / f"{bits}-{method.replace(' ', '-').replace(',', '')}", "--bits", bits, "--group-size",
                           group, *words)
            layers[bits, method] = errors(out, weights, seen)
            pair = [np.mean(list(layers[bits, method].values())),
                    np.mean(list(errors(out, weights, fresh).values()))]
            first = first or pair
            size = 256 if "trellis" in method else group
            print(f"| {bits}, g {size} | {method} | {stored_bits(out):.2f} | {pair[0]:.2e} "
                  f"| {100 * (1 - pair[0] / first[0]):.1f} % | {pair[1]:.2e} "
                  f"| {100 * (1 - pair[1] / first[1]):.1f} % |", flush=True)
    return layers


def budgets(folder, weights, seen, fresh):
    print("\n| bits by | stored bits | sum of errors, seen | unseen |\n|---|---|---|---|")
    rule = quantize(folder / "rule", "--group-size", 64, *RULE, *BOTH)
    rows = [("2 bits everywhere", quantize(folder / "two", "--bits", 2, "--group-size", 64, *BOTH)),
            ("budget of 3.0", quantize(folder / "three", "--target-bits", 3, "--group-size", 64, *BOTH)),
            ("names and depth", rule),
            ("budget of that size", quantize(folder / "same", "--target-bits", f"{stored_bits(rule):.6f}",
                                             "--group-size", 64, *BOTH))]
    for name, out in rows:
        sums = [sum(errors(out, weights, moments).values()) for moments in (seen, fresh)]
        print(f"| {name} | {stored_bits(out):.3f} | {sums[0]:.4f} | {sums[1]:.4f} |", flush=True)


def main():
    weights = {name: value.astype(np.float64) for name, value in dit.load(dit.DIGITS / FILE).items()
               if name.endswith(".weight") and value.ndim == 2 and "class_embedder" not in name}
    seen, fresh = seen_moments(weights), fresh_moments(weights)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        layers = means(folder, weights, seen, fresh)
        budgets(folder, weights, seen, fresh)
    print("\n| layer | " + " | ".join(f"{method} {bits}" for bits, method in layers) + " |")
    print("|---|" + "---|" * len(layers))
    for name in weights:
        print(f"| {name[:-7]} | " + " | ".join(f"{found[name]:.1e}" for found in layers.values()) + " |")


if __name__ == "__main__":
    main()
