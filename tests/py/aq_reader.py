"""Reads ArrowQuant's native format with NumPy: written from docs/FORMAT.md, from nothing else."""
import json
import math
import pathlib
import re
import struct
import zlib

import numpy as np

NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "I16": "<i2", "I32": "<i4",
         "I64": "<i8", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8", "BOOL": "?",
         "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1"}  # the last three: bits


def read_container(path):
    """{name: (dtype, array)} and the metadata."""
    with open(path, "rb") as file:
        size, = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size).decode("utf-8"))
        data = file.read()
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[begin:end], NUMPY[entry["dtype"]]).reshape(entry["shape"])
        tensors[name] = entry["dtype"], array
    return tensors, metadata


def unpack(codes, cols, bits):
    """[rows, words] → [rows, cols], least significant bit first."""
    words = codes.view("<u4")
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    spread = (words[:, :, None] >> shifts) & np.uint32(2**bits - 1)
    return spread.reshape(len(words), words.shape[1] * len(shifts))[:, :cols]


def parameters(entry, tensors, name):
    """scale and min, F32 [rows, groups]; min is None when symmetric."""
    params = tensors[name + ".aq_params"][1]
    symmetric = entry["code"] in ("symmetric", "trellis")
    if entry["params"] != "Q8":
        params = params.astype(np.float32)
        return params[:, :, 0], None if symmetric else params[:, :, 1]
    rows = tensors[name + ".aq_row_params"][1].astype(np.float32)
    scale, low = rows[:, :1], rows[:, -1:]
    if symmetric:
        return scale * params[:, :, 0].astype(np.float32) / np.float32(128), None
    u, i = params[:, :, 0].astype(np.float32), params[:, :, 1].view(np.int8).astype(np.float32)
    return scale * (u + np.float32(1)) / np.float32(256), low * i / np.float32(128)


def trellis_table(bits, states):
    """The integer that each state stands for, by the tables of the page."""
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs/FORMAT.md").read_text(encoding="utf-8")
    head = re.search(rf"b = {bits}, {states} states, m = (\d+):\n", page)
    a, b, c = (np.array(re.findall(r"-?\d+", line), np.int64) for line in page[head.end():].split("\n")[:3])
    s = np.arange(states)
    i, j, k = s % 16, s // 16 % 16, s // 256
    return a[i] + b[j] + c[k ^ int(head[1]) & (i ^ j)]


def trellis_values(codes, cols, bits, states):
    """[rows, words] → the integers [rows, cols] that scales multiply."""
    table, out = trellis_table(bits, states), []
    for begin in range(0, len(codes), 256):
        strip = codes[begin:begin + 256]
        ring = len(strip) * bits
        flat = np.unpackbits(np.ascontiguousarray(strip).view(np.uint8), bitorder="little").ravel()
        columns = flat[:cols * ring].reshape(cols, ring).astype(np.int64)
        at = np.arange(0, ring, bits)[:, None] + np.arange(int(states).bit_length() - 1)
        out.append(table[(columns[:, at % ring] << np.arange(at.shape[1])).sum(-1)].T)
    return np.concatenate(out)


def rotation_signs(seed, first, count):
    """±1 by the bits of the words from `first` on."""
    bits, most = [], 2**64 - 1
    for k in range(first, first + -(-count // 64)):
        z = seed + (k + 1) * 0x9E3779B97F4A7C15 & most
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & most
        z = (z ^ z >> 27) * 0x94D049BB133111EB & most
        z ^= z >> 31
        bits += [z >> i & 1 for i in range(64)]
    return 1.0 - 2.0 * np.array(bits[:count])


def rotation(seed, n):
    """R in float64."""
    p = 1 << n.bit_length() - 1
    hadamard = np.ones((1, 1))
    while len(hadamard) < p:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    hadamard = hadamard / math.sqrt(p)
    out = np.diag(rotation_signs(seed, 0, n))
    out[:p] = hadamard @ out[:p]
    if p < n:
        out[n - p:] *= rotation_signs(seed, -(-n // 64), p)[:, None]
        out[n - p:] = hadamard @ out[n - p:]
    return out


def dequantize(entry, tensors, name):
    """The values of a quantized tensor in F32, in its original shape; those of an equalized layer are
    multiplied by the scales of its input, column by column."""
    values = stored(entry, tensors, name)
    if "input" not in entry:
        return values
    if entry["input"] != "scales":
        raise ValueError(f"{name}: unknown input {entry['input']}")
    return (values * tensors[name + ".aq_input_scales"][1]).astype(np.float32)


def stored(entry, tensors, name):
    """What codes and parameters say."""
    if entry["code"] == "trellis":
        shape = entry["shape"]
        cols = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
        scale, _ = parameters(entry, tensors, name)
        w = trellis_values(tensors[name + ".aq_codes"][1], cols, entry["bits"], entry["states"])
        w = np.repeat(scale, entry["group_size"], 1)[:, :cols] * w.astype(np.float32)
        if entry.get("rotation"):
            w = (w.astype(np.float64) @ rotation(entry["rotation"], cols)).astype(np.float32)
        return w.reshape(shape)
    if entry["code"] not in ("affine", "symmetric", "residual"):
        raise ValueError(f"{name}: unknown code {entry['code']}")
    shape, bits = entry["shape"], entry["bits"]
    cols = math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)
    codes = unpack(tensors[name + ".aq_codes"][1], cols, bits).astype(np.float32)
    scale, low = (value if value is None else np.repeat(value, entry["group_size"], 1)[:, :cols]
                  for value in parameters(entry, tensors, name))
    if entry["code"] == "residual":
        signs = 2 * (unpack(tensors[name + ".aq_codes"][1], cols, 2)[..., None] >> [1, 0] & 1).astype(np.float32) - 1
        return (scale * signs[..., 0] + low * signs[..., 1]).astype(np.float32).reshape(shape)
    if low is None:
        return (scale * (codes - np.float32(2 ** (bits - 1)))).reshape(shape)
    return (scale * codes + low).reshape(shape)


def read(path):
    """{name: F32 array} of the quantized tensors, {name: (dtype, array)} of the kept ones."""
    tensors, metadata = read_container(path)
    native = json.loads(metadata["arrowquant"])
    assert native["version"] == 1
    for name, crc in native["crc32"].items():
        assert f"{zlib.crc32(tensors[name][1].tobytes()):08x}" == crc, name
    quantized = {name: dequantize(entry, tensors, name)
                 for name, entry in native["tensors"].items()}
    parts = {name + suffix for name in quantized
             for suffix in (".aq_codes", ".aq_params", ".aq_row_params")}
    return quantized, {name: tensor for name, tensor in tensors.items() if name not in parts}
