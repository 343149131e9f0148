"""ggml's own library, out of the wheel of pywhispercpp: only its public C functions are called."""
import ctypes
import importlib.util
import pathlib

import numpy as np

TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8, "Q2_K": 10, "Q4_K": 12, "BF16": 30}


class Traits(ctypes.Structure):
    """What ggml_get_type_traits returns."""
    _fields_ = [("name", ctypes.c_char_p), ("block", ctypes.c_int64),
                ("interleave", ctypes.c_int64), ("bytes", ctypes.c_size_t),
                ("quantized", ctypes.c_bool), ("to_float", ctypes.c_void_p),
                ("from_float", ctypes.c_void_p)]


def folder():
    """Where the wheel keeps its libraries, or None."""
    found = importlib.util.find_spec("pywhispercpp")
    if found is None:
        return None
    libs = pathlib.Path(found.origin).parent.parent / "pywhispercpp.libs"
    return libs if any(libs.glob("libggml-base*")) else None


class Ggml:
    def __init__(self, library=None):
        """`library`: another libggml-base than that of the wheel."""
        for needed in sorted(folder().glob("libgomp*")) if library is None else []:
            ctypes.CDLL(str(needed), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(library or next(folder().glob("libggml-base*"))),
                               mode=ctypes.RTLD_LOCAL if library else ctypes.RTLD_GLOBAL)
        self.lib.ggml_get_type_traits.restype = ctypes.POINTER(Traits)
        self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_int64, ctypes.c_void_p]

    def traits(self, name):
        return self.lib.ggml_get_type_traits(TYPES[name]).contents

    def quantize(self, name, x, importance=None):
        """Blocks of float32 rows; `importance` holds a weight for each column."""
        traits = self.traits(name)
        x = np.ascontiguousarray(x, np.float32)
        out = np.zeros(x.size // traits.block * traits.bytes, np.uint8)
        weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
        size = self.lib.ggml_quantize_chunk(
            TYPES[name], x.ctypes.data, out.ctypes.data, 0, x.shape[0], x.shape[1],
            None if weights is None else weights.ctypes.data)
        assert size == out.size
        return out

    def dequantize(self, name, blocks, count):
        blocks = np.ascontiguousarray(blocks)
        out = np.zeros(count, np.float32)
        call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
        call(self.traits(name).to_float)(blocks.ctypes.data, out.ctypes.data, count)
        return out
