"""What test_arrow.py runs in a process of its own, once plain and once under the address sanitizer:
tables go between the library and pyarrow through the C data interface. Prints JSON."""
import ctypes
import gc
import json
import sys

import numpy as np
import pyarrow as pa

lib = ctypes.CDLL(sys.argv[1])
model_path, work = sys.argv[2].encode(), sys.argv[3]
P = ctypes.c_void_p
lib.probe_context.restype = P
context = P(lib.probe_context())
error = ctypes.create_string_buffer(2048)


class Weights(ctypes.Structure):
    _fields_ = [("name", P), ("name_size", ctypes.c_size_t), ("weights", P),
                ("dtype", ctypes.c_int), ("count", ctypes.c_uint64), ("shape", P),
                ("rank", ctypes.c_size_t), ("rows", ctypes.c_uint64), ("cols", ctypes.c_uint64)]


class Layer(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("shape", P), ("rank", ctypes.c_size_t),
                ("bit_width", ctypes.c_uint8), ("group_size", ctypes.c_uint32), ("data", P),
                ("data_bytes", ctypes.c_uint64), ("scales", P), ("zero_points", P), ("mins", P),
                ("groups", ctypes.c_uint64), ("method", ctypes.c_char_p),
                ("dtype", ctypes.c_char_p), ("cosine_similarity", ctypes.c_double),
                ("sqnr_db", ctypes.c_double), ("time_groups", P),
                ("time_group_count", ctypes.c_size_t), ("time_groups_4bit", P)]


def struct():
    """Room for any of the three structs of the interface."""
    return ctypes.create_string_buffer(96)


def at(buffer):
    return ctypes.addressof(buffer)


def check(status):
    assert status == 0, error.raw[4:1028].split(b"\0")[0].decode()


def blocks():
    gc.collect()
    return lib.probe_blocks_now()


def export_model():
    """Ours to pyarrow: the codes lie in the mapped file, not in a copy."""
    model, stream = P(), struct()
    check(lib.aq_model_open(context, model_path, ctypes.byref(model), error))
    check(lib.aq_arrow_export_model(context, model, stream, error))
    table = pa.RecordBatchReader._import_from_c(at(stream)).read_all()
    table.validate(full=True)
    mapped = [[int(word, 16) for word in line.split()[0].split("-")]
              for line in open("/proc/self/maps") if ".safetensors" in line]
    inside = [any(low <= chunk.buffers()[2].address < high for low, high in mapped)
              for chunk in table["quantized_data"].chunks if len(chunk.buffers()[2])]
    return table, len(inside), sum(inside)


def export_layers():
    """Two layers of our memory: addresses compared, and when the owner hears of it."""
    codes = np.arange(96, dtype=np.uint8)
    scales = np.linspace(1, 2, 6, dtype=np.float32)
    shapes = np.array([[2, 64], [1, 64]], np.int64)
    layers = (Layer * 2)()
    for i, (code, group, groups) in enumerate(((0, 0, 4), (64, 4, 2))):
        layers[i] = Layer(f"layer.{i}".encode(), shapes[i].ctypes.data, 2, 4, 32,
                          codes[code:].ctypes.data, 16 * groups, scales[group:].ctypes.data,
                          scales[group:].ctypes.data, None, groups, b"ptq", b"F32", 0.5,
                          float("nan"), None, 0, None)
    schema, array = struct(), struct()
    check(lib.probe_layers(context, layers, 2, schema, array, error))
    batch = pa.RecordBatch._import_from_c(at(array), at(schema))
    batch.validate(full=True)
    before = lib.probe_owners_released()
    assert batch.column("quantized_data").buffers()[2].address == codes.ctypes.data
    assert batch.column("scales").values.buffers()[1].address == scales.ctypes.data
    assert batch.column("shape").values.buffers()[1].address == shapes.ctypes.data
    assert batch.column("mins").null_count == 2 and batch.column("sqnr_db").null_count == 2
    assert batch.schema.metadata == {b"model": b"digits"}
    column = batch.column("quantized_data")
    del batch
    gc.collect()
    assert lib.probe_owners_released() == before  # one column is still there
    assert column.to_pylist() == [codes[:64].tobytes(), codes[64:].tobytes()]
    del column
    gc.collect()
    assert lib.probe_owners_released() == before + 1
    return True


def import_weights(table):
    """pyarrow's to us: the weights are where pyarrow has them."""
    found = 0
    for batch in table.to_batches():
        schema, array = struct(), struct()
        batch._export_to_c(at(array), at(schema))
        rows = (Weights * max(1, len(batch)))()
        check(lib.aq_arrow_import_weights(schema, array, rows, error))
        values = batch.column("weights")
        for i in range(len(batch)):
            flat = values[i].values
            width = flat.type.bit_width // 8
            assert rows[i].count == len(flat)
            if len(flat):
                assert rows[i].weights == flat.buffers()[1].address + flat.offset * width
            name = ctypes.string_at(rows[i].name, rows[i].name_size).decode()
            assert name == batch.column("layer_name")[i].as_py()
            if "shape" in batch.schema.names:
                shape = batch.column("shape")[i].as_py()
                assert [rows[i].rows, rows[i].cols] == [shape[0], int(np.prod(shape[1:]))]
            found += 1
        for name, kind in (("array", array), ("schema", schema)):
            offset = {"array": 64, "schema": 56}[name]
            release = ctypes.CFUNCTYPE(None, P).from_buffer(kind, offset)
            release(at(kind))
    return found


def weights_tables():
    rng = np.random.default_rng(3)
    parts = [rng.standard_normal(n).astype(np.float32) for n in (64, 0, 6)]
    names, shapes = ["a.weight", "", "c é"], [[2, 32], [0, 5], [3, 2]]
    for text in (pa.string(), pa.large_string(), pa.string_view()):
        for many in (pa.list_, pa.large_list):
            for number in (pa.float32(), pa.float16(), pa.float64()):
                numbers = pa.array([part.tolist() for part in parts], many(pa.float64()))
                table = pa.table({"layer_name": pa.array(names, text),
                                  "weights": numbers.cast(many(number)),
                                  "shape": pa.array(shapes, many(pa.int64()))})
                yield table
                yield table.slice(1).drop_columns(["shape"])
                yield table.slice(2, 1)


table, codes, in_place = export_model()
names = table["layer_name"].to_pylist()
del table
after_model = blocks()
layers_ok = export_layers()
after_layers = blocks()
imported = sum(import_weights(table) for table in weights_tables())
print(json.dumps({"names": len(names), "codes": codes, "in_place": in_place, "blocks": [
    after_model, after_layers, blocks()], "layers": layers_ok, "imported": imported}))
