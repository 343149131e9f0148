"""Reads ArrowQuant's native format with NumPy: written from docs/FORMAT.md, from nothing else."""
import json
import math
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
    symmetric = entry["code"] == "symmetric"
    if entry["params"] != "Q8":
        params = params.astype(np.float32)
        return params[:, :, 0], None if symmetric else params[:, :, 1]
    rows = tensors[name + ".aq_row_params"][1].astype(np.float32)
    scale, low = rows[:, :1], rows[:, -1:]
    if symmetric:
        return scale * params[:, :, 0].astype(np.float32) / np.float32(128), None
    u, i = params[:, :, 0].astype(np.float32), params[:, :, 1].view(np.int8).astype(np.float32)
    return scale * (u + np.float32(1)) / np.float32(256), low * i / np.float32(128)


def dequantize(entry, tensors, name):
    """The values of a quantized tensor in F32, in its original shape."""
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
