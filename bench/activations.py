#!/usr/bin/env python3
"""Static integers for activations: the error of each layer's output when its input is rounded to
8 or 4 bits, by groups of timesteps, against dynamic rounding by token. On a DDIM-50 run of the
bundled model; all linear layers, weights as they are.

    bench/activations.py [--images 100] [--seed N] [--markdown]

Statistics come from the reference noises; with --seed the error is measured on fresh ones.
Errors, the mean over layers of two ratios, both summed over the run: of the output,
‖(X̂ − X)Wᵀ‖² / ‖XWᵀ‖², and of the input itself, ‖X̂ − X‖² / ‖X‖².
"""
import argparse
import pathlib
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / "tests/py"))

import dit  # noqa: E402  (before NumPy: it sets its number of threads)
import numpy as np  # noqa: E402

import aq_library as lib  # noqa: E402

COUNTS = (1, 5, 10, 20, 50)


def rounded(x, scale, zero, levels):
    """x on a grid; scale and zero broadcast against it."""
    return (np.clip(np.rint(x / scale) + zero, 0, levels) - zero) * scale


def dynamic(x, levels):
    low, high = x.min(1, keepdims=True), x.max(1, keepdims=True)
    scale = np.maximum((high - low) / levels, np.float32(1e-30))
    return rounded(x, scale, np.rint(-low / scale), levels)


class Static:
    """One way to choose the integers of every layer."""

    def __init__(self, library, calibration, layers, count, equalize=None, **options):
        self.equalize = equalize  # {layer: scales of its input} or None
        self.groups = {name: library.groups(library.find(calibration, name), count, **options)
                       for name in layers}
        self.width = options.get("channel_group", 0)

    def apply(self, layer, timestep, x, bits):
        found = self.groups[layer]
        g = found["lookup"][timestep]
        which, levels = (0, 255) if bits == 8 else (1, 15)
        scale, zero = found["scale"][which][g], found["zero_point"][which][g].astype(np.float32)
        if self.width:
            scale, zero = (np.repeat(v, self.width)[:x.shape[1]] for v in (scale, zero))
        if self.equalize is None:
            return rounded(x, scale, zero, levels)
        s = self.equalize[layer]
        return rounded(x * s, scale, zero, levels) / s


def statistics(library, model, noise, classes, scales=None):
    """A calibration of the run; of equalized inputs, if scales are given."""
    observer, calibration = lib.C.c_void_p(), lib.C.c_void_p()
    library.call("aq_observer_create", None, None, lib.C.byref(observer))

    def seen(layer, timestep, x):
        if layer != "pos_embed.proj":
            library.feed(observer, layer, timestep, x if scales is None else x * scales[layer])
    dit.watch(model, noise, classes, seen)
    library.call("aq_observer_calibration", observer, lib.C.byref(calibration))
    library.c.aq_observer_destroy(observer)
    return calibration


def ways(library, plain, equalized, scales, layers):
    """(name, count) -> Static"""
    table = {}
    for count in COUNTS:
        def add(name, calibration=plain, equalize=None, **options):
            table[name, count] = Static(library, calibration, layers, count, equalize, **options)
        add("uniform cut")
        add("optimal cut", cut=lib.OPTIMAL)
        add("optimal, least error", cut=lib.OPTIMAL, range=lib.LEAST_ERROR)
        add("optimal, 32 channels a scale", cut=lib.OPTIMAL, channel_group=32)
        add("optimal, equalized", equalized, scales, cut=lib.OPTIMAL)
        add("optimal, equalized, least error", equalized, scales, cut=lib.OPTIMAL,
            range=lib.LEAST_ERROR)
        add("optimal, equalized, 32 channels a scale", equalized, scales, cut=lib.OPTIMAL,
            channel_group=32)
    return table


def square(x):
    return float(np.square(x, dtype=np.float64).sum())


def measure(model, noise, classes, table, scales):
    """{(name, count, bits): (error of the output, of the input)}, means over the layers; dynamic
    rounding has the count 0."""
    errors, energy = {}, {}

    def seen(layer, timestep, x):
        if layer == "pos_embed.proj":
            return
        weight = model.weights[layer].T
        energy[layer] = energy.get(layer, 0.0) + np.array([square(x @ weight), square(x)])
        for bits, levels in ((8, 255), (4, 15)):
            s = scales[layer]
            tries = [(("dynamic, by token", 0), dynamic(x, levels)),
                     (("dynamic, by token, equalized", 0), dynamic(x * s, levels) / s)]
            tries += [(key, way.apply(layer, timestep, x, bits)) for key, way in table.items()]
            for key, back in tries:
                found = errors.setdefault((*key, bits), {})
                apart = back - x
                found[layer] = found.get(layer, 0.0) + np.array([square(apart @ weight), square(apart)])
    dit.watch(model, noise, classes, seen)
    return {key: np.mean([found[layer] / energy[layer] for layer in found], 0)
            for key, found in errors.items()}


def run(images=100, seed=None):
    library = lib.Library(lib.build(TOP / "build/bench/libarrowquant.so"))
    model = dit.Model()
    layers = model.layers()
    noise, classes = (part[:images] for part in dit.reference_noise())
    plain = statistics(library, model, noise, classes)
    scales = {name: library.equalize(model.weights[name], library.find(plain, name), bits=8,
                                     group_size=64)[0] for name in layers}
    equalized = statistics(library, model, noise, classes, scales)
    table = ways(library, plain, equalized, scales, layers)
    if seed is not None:
        noise, classes = dit.fresh_noise(seed, images)
    found = measure(model, noise, classes, table, scales)
    library.close(plain)
    library.close(equalized)
    return found


def show_table(found, bits, which, markdown):
    names = list(dict.fromkeys(key[0] for key in found if key[1]))
    moving = list(dict.fromkeys(key[0] for key in found if not key[1]))
    head = ["groups of timesteps", *[f"G = {count}" for count in COUNTS]]
    rows = [[name, *[f"{found[name, count, bits][which]:.3e}" for count in COUNTS]]
            for name in names]
    rows += [[name, f"{found[name, 0, bits][which]:.3e}", *[""] * (len(COUNTS) - 1)]
             for name in moving]
    if markdown:
        print("| " + " | ".join(head) + " |\n|---|" + "---|" * len(COUNTS))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    else:
        for row in [head, *rows]:
            print(f"  {row[0]:42}" + "".join(f"{cell:>12}" for cell in row[1:]))
    first, ten, all_ = (found["optimal cut", count, bits][which] for count in (1, 10, 50))
    token = found["dynamic, by token", 0, bits][which]
    best = min(names, key=lambda name: found[name, 50, bits][which])
    print(f"\nG = 10, optimal cut: {100 * (first - ten) / (first - all_):.1f} % of the way from one group to one "
          f"for each timestep.\nStatic / dynamic by token: {first / token:.2f} plain (G = 1), "
          f"{found[best, 10, bits][which] / token:.2f} at best (G = 10, {best}).\n")


def show(found, markdown):
    for bits in (8, 4):
        for which, what in enumerate(("output", "input")):
            print(f"{'### ' if markdown else ''}INT{bits} activations, error of the {what}\n")
            show_table(found, bits, which, markdown)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20, help="of the run, at most 100")
    parser.add_argument("--seed", type=int, help="measure on fresh noises")
    parser.add_argument("--markdown", action="store_true")
    given = parser.parse_args()
    show(run(given.images, given.seed), given.markdown)


if __name__ == "__main__":
    main()
