"""The parts of arrowquant.h that gather and use activation statistics, through ctypes: the built
header as a shared library, NumPy arrays in and out."""
import ctypes as C
import pathlib
import subprocess

import numpy as np

REPO = pathlib.Path(__file__).resolve().parents[2]
CELLS = 641
F32, F64 = 1, 0
UNIFORM, OPTIMAL = 0, 1
MIN_MAX, PERCENTILE, LEAST_ERROR = 0, 1, 2


def build(target):
    """Compiles the header unless `target` is newer."""
    header = REPO / "arrowquant.h"
    if not target.is_file() or target.stat().st_mtime <= header.stat().st_mtime:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")
        subprocess.run(["gcc", "-std=c99", "-O2", "-shared", "-fPIC", "-DARROWQUANT_IMPLEMENTATION",
                        "-x", "c", header, "-o", fresh, "-lpthread", "-lm"], check=True)
        fresh.replace(target)
    return target


class Error(C.Structure):
    _fields_ = [("status", C.c_int), ("message", C.c_char * 1024), ("tensor", C.c_char * 256),
                ("offset", C.c_uint64)]


class Layer(C.Structure):
    _fields_ = [("name", C.c_char_p), ("channels", C.c_uint64), ("timestep_count", C.c_size_t),
                ("timesteps", C.POINTER(C.c_int64)), ("rows", C.POINTER(C.c_uint64)),
                *[(name, C.POINTER(C.c_float)) for name in (
                    "min", "max", "mean", "std", "absmax", "sqmean", "channel_min", "channel_max",
                    "percentiles")],
                ("sketch", C.POINTER(C.c_uint64)), ("sketch_top", C.POINTER(C.c_int32)),
                ("pooled_absmax", C.POINTER(C.c_float)), ("pooled_sqmean", C.POINTER(C.c_float)),
                ("has_hessian", C.c_bool), ("hessian_rows", C.c_uint64), ("owner", C.c_size_t)]


class Options(C.Structure):
    _fields_ = [("num_time_groups", C.c_uint32), ("total_timesteps", C.c_uint32), ("cut", C.c_int),
                ("range", C.c_int), ("percentile", C.c_double), ("channel_group", C.c_uint32)]


class Groups(C.Structure):
    _fields_ = [("count", C.c_uint32), ("total_timesteps", C.c_uint32),
                ("channel_group", C.c_uint32), ("channel_groups", C.c_uint32),
                ("starts", C.POINTER(C.c_int32)), ("lookup", C.POINTER(C.c_uint8)),
                ("scale", C.POINTER(C.c_float) * 2), ("zero_point", C.POINTER(C.c_int32) * 2),
                ("error", C.POINTER(C.c_double) * 2), ("context", C.c_void_p), ("bytes", C.c_size_t)]


class Violation(C.Structure):
    _fields_ = [("boundary", C.c_uint32), ("scale_jump", C.c_double),
                ("zero_point_jump", C.c_double), ("severity", C.c_int)]


class Markov(C.Structure):
    _fields_ = [("smoothness_score", C.c_double), ("is_valid", C.c_bool),
                ("boundary_count", C.c_uint32), ("violation_count", C.c_uint32),
                ("boundary_scores", C.c_double * 100), ("violations", Violation * 100)]


class Spec(C.Structure):
    _fields_ = [("code", C.c_int), ("params", C.c_int), ("bits", C.c_uint32),
                ("group_size", C.c_uint32)]


class Equalization(C.Structure):
    _fields_ = [("migration", C.c_double), ("error", C.c_double), ("error_without", C.c_double)]


class Failed(Exception):
    """A status other than success: `status`, and the message."""

    def __init__(self, error):
        super().__init__(error.message.decode("utf-8", "replace"))
        self.status = error.status


def pointer(array, kind):
    return array.ctypes.data_as(C.POINTER(kind)) if array is not None else None


class Library:
    def __init__(self, path):
        self.c = C.CDLL(str(path))
        self.c.aq_time_group_of.restype = C.c_uint32
        self.c.aq_calibration_find.restype = C.POINTER(Layer)
        self.c.aq_severity_name.restype = C.c_char_p

    def call(self, name, *arguments):
        error = Error()
        if getattr(self.c, name)(*arguments, C.byref(error)) != 0:
            raise Failed(error)

    # ---- statistics

    def observe(self, feeds):
        """A calibration of (layer, timestep, rows [n, channels]); close it with close()."""
        observer, calibration = C.c_void_p(), C.c_void_p()
        self.call("aq_observer_create", None, None, C.byref(observer))
        try:
            for layer, timestep, rows in feeds:
                self.feed(observer, layer, timestep, rows)
            self.call("aq_observer_calibration", observer, C.byref(calibration))
        finally:
            self.c.aq_observer_destroy(observer)
        return calibration

    def feed(self, observer, layer, timestep, rows):
        rows = np.ascontiguousarray(rows, np.float32)
        self.call("aq_observer_feed", observer, layer.encode(), C.c_int64(timestep), F32,
                  rows.ctypes.data_as(C.c_void_p), C.c_uint64(rows.shape[0]),
                  C.c_uint64(rows.shape[1]))

    def open(self, *paths):
        calibration = C.c_void_p()
        list_ = (C.c_char_p * len(paths))(*[str(path).encode() for path in paths])
        self.call("aq_calibration_open", None, list_, C.c_size_t(len(paths)), C.c_uint32(0),
                  C.byref(calibration))
        return calibration

    def find(self, calibration, name):
        found = self.c.aq_calibration_find(calibration, name.encode())
        return found.contents if found else None

    def close(self, calibration):
        self.c.aq_calibration_close(calibration)

    # ---- what is made of them

    def groups(self, layer, count, total=1000, cut=UNIFORM, range=MIN_MAX, percentile=99.9,
               channel_group=0):
        """{"starts", "lookup", "scale", "zero_point" [bits 8, 4], "error"} as NumPy arrays."""
        options = Options(count, total, cut, range, percentile, channel_group)
        out = Groups()
        self.call("aq_time_groups_make", None, C.byref(layer), C.byref(options), C.byref(out))
        shape = (out.count, out.channel_groups)

        def take(p, *dims):
            return np.ctypeslib.as_array(p, dims).copy()
        found = {"starts": take(out.starts, out.count), "lookup": take(out.lookup, total),
                 "scale": [take(out.scale[i], *shape) for i in (0, 1)],
                 "zero_point": [take(out.zero_point[i], *shape) for i in (0, 1)],
                 "error": [take(out.error[i], out.count) for i in (0, 1)],
                 "at": [self.c.aq_time_group_of(C.byref(out), C.c_int64(t))
                        for t in (-5, 0, total - 1, total + 7)]}
        self.c.aq_time_groups_free(C.byref(out))
        return found

    def markov(self, scales, zero_points, threshold):
        scales = np.ascontiguousarray(scales, np.float32)
        zero_points = np.ascontiguousarray(zero_points, np.int32)
        out = Markov()
        self.c.aq_markov_measure(pointer(scales, C.c_float), pointer(zero_points, C.c_int32),
                                 C.c_uint32(len(scales)), C.c_double(threshold), C.byref(out))
        return out

    def smooth(self, scales, zero_points, window, interpolation):
        scales = np.array(scales, np.float32)
        zero_points = np.array(zero_points, np.int32)
        self.call("aq_smooth_boundaries", pointer(scales, C.c_float),
                  pointer(zero_points, C.c_int32), C.c_uint32(len(scales)), C.c_uint32(window),
                  interpolation)
        return scales, zero_points

    def equalize(self, weights, layer, bits=4, group_size=128, migration=float("nan"),
                 activation_bits=8):
        weights = np.ascontiguousarray(weights, np.float32)
        rows, cols = weights.shape
        scales, out = np.empty(cols, np.float32), Equalization()
        spec = Spec(0, 0, bits, group_size)
        self.call("aq_equalize", None, C.byref(spec), weights.ctypes.data_as(C.c_void_p), F32,
                  C.c_uint64(rows), C.c_uint64(cols), C.byref(layer), C.c_double(migration),
                  C.c_uint32(activation_bits), pointer(scales, C.c_float), C.byref(out))
        return scales, out
