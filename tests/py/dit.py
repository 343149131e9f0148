"""The bundled digits DiT in NumPy, written from its config and tensor names: what any quantization
of its layers does to their outputs and to its samples.

    model = Model(REPO / "tests/fixtures/digits-dit")
    eps = model.forward(x, timesteps, classes)             # x [n, 1, 8, 8]
    samples = model.sample(noise, classes)                 # DDIM, 50 steps
    inputs = collect(model, noise, classes)                # {layer: [50][rows, channels]}

A layer is a Linear or Conv2d by its module name ("transformer_blocks.0.attn1.to_q"). Its weight may
be replaced (`model.weights[layer]`), its input looked at or replaced (`hook(layer, x)`, which gets
the rows that the weight matrix meets, [rows, channels], and returns them or others).
"""
import json
import math
import os
import pathlib

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads spin where cores are shared

import numpy as np

REPO = pathlib.Path(__file__).resolve().parents[2]
DIGITS = REPO / "tests/fixtures/digits-dit"
REFERENCE = REPO / "tests/fixtures/digits-dit-reference"
STEPS = 50


def load(path):
    """All tensors of a safetensors file as NumPy arrays; BF16 becomes float32."""
    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
    data = pathlib.Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    out = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + at for at in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
            out[name] = bits.view(np.float32).reshape(entry["shape"])
        else:
            kind = kinds[entry["dtype"]]
            out[name] = np.frombuffer(data[begin:end], kind).reshape(entry["shape"]).copy()
    return out


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def normalize(x, epsilon):
    """LayerNorm without scale and shift, over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def position_embedding(width, side):
    """Sines and cosines of the column in the first half of the channels, of the row in the second."""
    quarter = width // 4
    frequency = 10000.0 ** (-np.arange(quarter) / quarter)
    row, column = np.divmod(np.arange(side * side), side)
    parts = [f(at[:, None] * frequency) for at in (column, row) for f in (np.sin, np.cos)]
    return np.concatenate(parts, 1)


def timestep_embedding(timesteps, width=256):
    half = width // 2
    angle = timesteps[:, None] * np.exp(-math.log(10000) * np.arange(half) / (half - 1))
    return np.concatenate([np.cos(angle), np.sin(angle)], 1)


class Model:
    def __init__(self, folder=DIGITS, dtype=np.float32):
        folder = pathlib.Path(folder) / "transformer"
        self.config = json.loads((folder / "config.json").read_text())
        tensors = load(folder / "diffusion_pytorch_model.safetensors")
        self.dtype = dtype
        self.heads, self.head = (self.config[k] for k in ("num_attention_heads", "attention_head_dim"))
        self.width = self.heads * self.head
        self.patch = self.config["patch_size"]
        self.side = self.config["sample_size"] // self.patch
        self.blocks = self.config["num_layers"]
        self.tables, self.weights, self.biases = {}, {}, {}
        for name, value in tensors.items():
            value = value.astype(dtype)
            module, _, kind = name.rpartition(".")
            if module.endswith("embedding_table"):
                self.tables[module] = value
            elif kind == "bias":
                self.biases[module] = value
            else:
                self.weights[module] = value.reshape(len(value), -1)
        self.position = position_embedding(self.width, self.side).astype(dtype)
        self.hook = None

    def layers(self, convolution=False):
        """Names of the linear layers; the patch embedding, a convolution, too when asked for."""
        return [name for name in self.weights if convolution or name != "pos_embed.proj"]

    def linear(self, name, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        if self.hook is not None:
            x = self.hook(name, x)
        return (x @ self.weights[name].T + self.biases[name]).reshape(*shape[:-1], -1)

    def conditioning(self, block, timesteps, classes):
        name = f"transformer_blocks.{block}.norm1.emb"
        wave = timestep_embedding(timesteps.astype(self.dtype)).astype(self.dtype)
        wave = silu(self.linear(f"{name}.timestep_embedder.linear_1", wave))
        wave = self.linear(f"{name}.timestep_embedder.linear_2", wave)
        return silu(wave + self.tables[f"{name}.class_embedder.embedding_table"][classes])

    def attention(self, name, x):
        count, tokens = x.shape[:2]

        def split(y):
            return y.reshape(count, tokens, self.heads, self.head).transpose(0, 2, 1, 3)
        q, k, v = (split(self.linear(f"{name}.to_{letter}", x)) for letter in "qkv")
        scores = softmax(q @ k.transpose(0, 1, 3, 2) / self.dtype(math.sqrt(self.head)))
        mixed = (scores @ v).transpose(0, 2, 1, 3).reshape(count, tokens, self.width)
        return self.linear(f"{name}.to_out.0", mixed)

    def block(self, index, x, timesteps, classes):
        name = f"transformer_blocks.{index}"
        condition = self.conditioning(index, timesteps, classes)
        parts = np.split(self.linear(f"{name}.norm1.linear", condition)[:, None], 6, -1)
        shift, scale, gate, ff_shift, ff_scale, ff_gate = parts
        y = normalize(x, 1e-6) * (1 + scale) + shift
        x = x + gate * self.attention(f"{name}.attn1", y)
        y = normalize(x, self.config["norm_eps"]) * (1 + ff_scale) + ff_shift
        y = gelu(self.linear(f"{name}.ff.net.0.proj", y))
        return x + ff_gate * self.linear(f"{name}.ff.net.2", y)

    def forward(self, x, timesteps, classes):
        """The predicted noise of x [n, 1, size, size] at timesteps [n] for classes [n]."""
        count, n, p = len(x), self.side, self.patch
        timesteps = np.broadcast_to(np.asarray(timesteps), (count,))
        patches = np.asarray(x, self.dtype).reshape(count, n, p, n, p).transpose(0, 1, 3, 2, 4)
        h = self.linear("pos_embed.proj", patches.reshape(count, n * n, p * p)) + self.position
        for index in range(self.blocks):
            h = self.block(index, h, timesteps, classes)
        condition = self.conditioning(0, timesteps, classes)  # of the first block once more
        shift, scale = np.split(self.linear("proj_out_1", condition)[:, None], 2, -1)
        h = self.linear("proj_out_2", normalize(h, 1e-6) * (1 + scale) + shift)
        return h.reshape(count, n, n, p, p).transpose(0, 1, 3, 2, 4).reshape(count, 1, n * p, n * p)

    def sample(self, noise, classes, steps=STEPS, on_step=None):
        """DDIM from `noise`, x0 clamped to [-1, 1]; on_step(timestep) is told before each pass."""
        schedule = json.loads((DIGITS / "scheduler/scheduler_config.json").read_text())
        total = schedule["num_train_timesteps"]
        betas = np.linspace(schedule["beta_start"], schedule["beta_end"], total)
        kept = np.cumprod(1 - betas)
        x = np.asarray(noise, self.dtype)
        for timestep in timesteps_of(steps)[::-1]:
            if on_step is not None:
                on_step(int(timestep))
            before = timestep - total // steps
            now, then = kept[timestep], kept[before] if before >= 0 else 1.0
            eps = self.forward(x, timestep, classes)
            x0 = np.clip((x - math.sqrt(1 - now) * eps) / math.sqrt(now), -1, 1)
            eps = (x - math.sqrt(now) * x0) / math.sqrt(1 - now)
            x = (math.sqrt(then) * x0 + math.sqrt(1 - then) * eps).astype(self.dtype)
        return x


def timesteps_of(steps=STEPS, total=1000):
    """Ascending."""
    return np.arange(0, total, total // steps)


def fresh_noise(seed, count=100):
    """Noise and classes of a run that is not the reference run."""
    noise = np.random.Generator(np.random.PCG64(seed)).standard_normal((count, 1, 8, 8))
    return noise.astype(np.float32), np.arange(count) % 10


def reference_noise():
    vectors = load(REFERENCE / "vectors.safetensors")
    return vectors["ddim.noise"], vectors["ddim.class"]


def watch(model, noise, classes, seen, steps=STEPS):
    """A whole run, each layer's input rows shown to seen(layer, timestep, rows), once a pass; the
    samples. (The first block's embedder is called twice in a pass, on the same input.)"""
    done, now = set(), [0]

    def step(timestep):
        done.clear()
        now[0] = timestep

    def hook(layer, x):
        if layer not in done:
            seen(layer, now[0], x)
        done.add(layer)
        return x
    model.hook = hook
    try:
        return model.sample(noise, classes, steps, step)
    finally:
        model.hook = None


def collect(model, noise, classes, steps=STEPS):
    """{layer: one [rows, channels] array a timestep, ascending}"""
    inputs = {name: [None] * steps for name in model.layers(True)}

    def seen(layer, timestep, rows):
        inputs[layer][timestep * steps // 1000] = rows.copy()
    watch(model, noise, classes, seen, steps)
    return inputs


def second_moments(inputs):
    """{layer: XᵀX / n in float64} of what `collect` gives."""
    out = {}
    for name, steps in inputs.items():
        total = sum(x.astype(np.float64).T @ x.astype(np.float64) for x in steps)
        out[name] = total / sum(len(x) for x in steps)
    return out
