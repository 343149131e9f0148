"""Arrow against those that speak it: pyarrow through the C data interface and IPC, polars, DuckDB."""
import ctypes
import json
import os
import subprocess
import sys

import numpy as np
import pytest

import aq_reader
import dit
from conftest import MADE, REPO, WARNINGS, LIBS, call, held, library_objects, need, stale
from tool_models import bad, good, good_json, llm_tensors, sharded_folder

pa = pytest.importorskip("pyarrow", reason="no pyarrow here (tests/py/requirements-heavy.txt)")
SANITIZE = ["-fsanitize=address", "-g1"]


def shared(name, *flags):
    """With the library compiled by these flags, or with that of the C tests."""
    source, target = REPO / "tests/c/arrow_probe.c", MADE / f"{name}.so"
    with held(name):
        if stale(target, [source, REPO / "arrowquant.h"]):
            target.parent.mkdir(exist_ok=True)
            library = ["-DARROWQUANT_IMPLEMENTATION"] if flags else library_objects()
            call(["gcc", "-std=c99", "-O0", *WARNINGS, *flags, "-fPIC", "-shared", "-I", REPO, source,
                  *library, "-o", target, *LIBS])
    return target


@pytest.fixture(scope="module")
def probe():
    return shared("arrow_probe")


@pytest.fixture(scope="module")
def quantized(aq, digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arrow") / "q"
    good(aq, "quantize", digits, folder, "--group-size", "64", "--layer-bits", "*attn1.to_q*=8")
    return folder


class Library:
    """What the tests call, with errors as exceptions."""

    def __init__(self, path):
        self.lib = ctypes.CDLL(str(path))
        self.error = ctypes.create_string_buffer(2048)

    def check(self, status):
        if status:
            raise ValueError(self.error.raw[4:1028].split(b"\0")[0].decode())

    def model(self, path):
        """A RecordBatchReader over a model."""
        model, stream = ctypes.c_void_p(), ctypes.create_string_buffer(64)
        self.check(self.lib.aq_model_open(None, str(path).encode(), ctypes.byref(model), self.error))
        self.check(self.lib.aq_arrow_export_model(None, model, stream, self.error))
        return pa.RecordBatchReader._import_from_c(ctypes.addressof(stream))

    def write(self, table, path, kind=0, reader=None):
        stream = ctypes.create_string_buffer(64)
        reader = reader or pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
        reader._export_to_c(ctypes.addressof(stream))
        self.check(self.lib.aq_arrow_ipc_write(None, stream, str(path).encode(), kind, self.error))

    def read(self, path):
        stream = ctypes.create_string_buffer(64)
        self.check(self.lib.aq_arrow_ipc_open(None, str(path).encode(), stream, self.error))
        table = pa.RecordBatchReader._import_from_c(ctypes.addressof(stream)).read_all()
        table.validate(full=True)
        return table


@pytest.fixture(scope="module")
def library(probe):
    return Library(probe)


@pytest.mark.parametrize("kind", ["plain", "sanitized"])
def test_c_data_interface(kind, quantized, tmp_path):
    """No copy (addresses), no leak (blocks of our allocator), no stray access (sanitizer)."""
    environment = dict(os.environ)
    if kind == "sanitized":
        need("gcc")
        preload = [call(["gcc", f"-print-file-name={name}"]).strip() for name in
                   ("libasan.so", "libstdc++.so")]
        if not os.path.isabs(preload[0]):
            pytest.skip("gcc has no sanitizer runtime here")
        # Python's own blocks would drown ours in a leak report: ours are counted by the allocator
        environment.update(LD_PRELOAD=" ".join(preload),
                           ASAN_OPTIONS="detect_leaks=0:allocator_may_return_null=1",
                           ARROW_DEFAULT_MEMORY_POOL="system")
    path = shared("arrow_probe_asan", *SANITIZE) if kind == "sanitized" else shared("arrow_probe")
    done = subprocess.run([sys.executable, REPO / "tests/py/arrow_exchange.py", path, quantized,
                           tmp_path], capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(done.stdout)
    assert result["names"] == 82 and result["codes"] == result["in_place"] == 82
    assert result["layers"] and result["imported"] == 18 * 6
    assert len(set(result["blocks"])) == 1  # the context alone


def test_table_holds_the_model(library, quantized):
    """Every value of the table against the reader of the native format that NumPy is."""
    expected, kept = aq_reader.read(next((quantized / "transformer").glob("*.safetensors")))
    table = library.model(quantized).read_all()
    table.validate(full=True)
    assert table["layer_name"].to_pylist() == sorted([*expected, *kept])
    assert table.schema.field("scales").type == pa.list_(pa.float32())
    assert table.schema.metadata[b"arrowquant.modality"] == b"image"
    bits = set()
    for row in table.to_pylist():
        name, shape = row["layer_name"], row["shape"]
        if name in kept:
            dtype, array = kept[name]
            assert row["quantized_data"] == array.tobytes() and row["dtype"] == dtype
            assert row["method"] == "kept" and row["scales"] is None and row["group_size"] == 0
            continue
        cols = int(np.prod(shape[1:]))
        codes = np.frombuffer(row["quantized_data"], "<u4").reshape(shape[0], -1).view("<i4")
        codes = aq_reader.unpack(codes, cols, row["bit_width"]).astype(np.float32)
        scale, low, zero = (np.array(row[key], np.float32).reshape(shape[0], -1)
                            for key in ("scales", "mins", "zero_points"))
        spread = [np.repeat(value, row["group_size"], 1)[:, :cols] for value in (scale, low, zero)]
        values = spread[0] * codes + spread[1]
        assert np.array_equal(values.reshape(shape), expected[name])
        assert np.allclose(spread[0] * (codes - spread[2]), values, rtol=1e-4, atol=1e-6)
        assert 0.9 < row["cosine"] <= 1 and row["sqnr_db"] > 15 and row["time_groups"] is None
        bits.add(row["bit_width"])
    assert bits == {4, 8}


def test_symmetric_zero_points_are_exact(library, aq, digits, tmp_path):
    good(aq, "quantize", digits, tmp_path / "q", "--symmetric", "--bits", "2", "--min-accuracy", "0")
    rows = [row for row in library.model(tmp_path / "q").read_all().to_pylist()
            if row["method"] != "kept"]
    assert rows and all(set(row["zero_points"]) == {2.0} and row["mins"] is None for row in rows)


@pytest.fixture(scope="module")
def timed(aq, digits, tmp_path_factory):
    """{count: a run with so many groups of timesteps}"""
    folder = tmp_path_factory.mktemp("timed")
    for count in (1, 7, 50):
        good(aq, "quantize", digits, folder / str(count), "--calibration",
             dit.REFERENCE / "activations.safetensors", "--time-groups", count,
             "--set", "enable_spatial=false")
    return folder


def stored_groups(folder):
    """{layer: [8 bits, 4 bits]}: (t_start, t_end, scale, zero point) as the native files have them"""
    stored = dit.load(next((folder / "transformer").glob("*.safetensors")))
    names = [name[:-len(".aq_act_starts")] for name in stored if name.endswith(".aq_act_starts")]
    return {name: [list(zip(stored[name + ".aq_act_starts"][:-1], stored[name + ".aq_act_starts"][1:],
                            stored[name + ".aq_act_scales"][w], stored[name + ".aq_act_zeros"][w]))
                   for w in range(2)] for name in names}


def shown_groups(table):
    return {row["layer_name"]:
            [[(g["t_start"], g["t_end"], g["scale"], g["zero_point"]) for g in row[column]]
             for column in ("time_groups", "time_groups_4bit")]
            for row in table.to_pylist() if row["time_groups"] is not None}


@pytest.mark.parametrize("count", [1, 7, 50])
def test_time_groups_of_a_model(count, library, aq, digits, timed, tmp_path):
    """The table has every layer's groups, exported, converted or written by a run, and no other rows;
    pyarrow's copy of the table is a model with the same groups, and so is what goes back."""
    expected = stored_groups(timed / str(count))
    assert len(expected) == 28 and all(len(part) == count for pair in expected.values() for part in pair)
    table = library.model(timed / str(count)).read_all()
    table.validate(full=True)
    struct = pa.struct([("t_start", pa.int32()), ("t_end", pa.int32()), ("scale", pa.float32()),
                        ("zero_point", pa.float32())])
    assert table.schema.field("time_groups").type == pa.list_(struct)
    assert table.schema.field("time_groups_4bit").type == pa.list_(struct)
    assert shown_groups(table) == expected
    assert table["time_groups"].null_count == table["time_groups_4bit"].null_count == len(table) - 28
    good(aq, "convert", timed / str(count), tmp_path / "c.arrow", "--format", "arrow")
    assert library.read(tmp_path / "c.arrow").equals(table)
    good(aq, "quantize", digits, tmp_path / "q", "--calibration",
         dit.REFERENCE / "activations.safetensors", "--time-groups", count, "--format",
         "arrow", "--set", "enable_spatial=false")
    run = library.read(next((tmp_path / "q/transformer").glob("*.arrow")))
    assert shown_groups(run) == expected
    wide = table.cast(pa.schema([field.with_type(pa.large_list(struct))
                                 if field.name.startswith("time") else field
                                 for field in table.schema]))
    for part in (table, wide, table.combine_chunks(), table.slice(3)):
        with pa.ipc.new_file(str(tmp_path / "t.arrow"), part.schema) as writer:
            writer.write_table(part)
        again = library.model(tmp_path / "t.arrow").read_all()
        assert shown_groups(again) == {name: groups for name, groups in expected.items()
                                       if name in part["layer_name"].to_pylist()}
    good(aq, "convert", tmp_path / "c.arrow", tmp_path / "back.safetensors", "--format", "native")
    back = dit.load(tmp_path / "back.safetensors")
    shown = {x["name"]: x for x in good_json(aq, "inspect", tmp_path / "back.safetensors",
                                             "--verify")["tensors"]}
    for name, (eight, four) in expected.items():
        assert list(back[name + ".aq_act_scales"].ravel()) == [g[2] for g in eight + four]
        assert list(back[name + ".aq_act_zeros"].ravel()) == [g[3] for g in eight + four]
        assert list(back[name + ".aq_act_starts"]) == [*(g[0] for g in eight), 1000]
        assert shown[name]["time_groups"]["scales_8"] == pytest.approx([g[2] for g in eight])


def test_time_groups_that_are_wrong(library, aq, timed, tmp_path):
    """Tables of others: each fault is named; a column that is not there is no fault."""
    table = library.model(timed / "7").read_all()
    rows = table.to_pylist()
    first = next(row for row in rows if row["time_groups"])

    def write(schema=table.schema, **more):
        with pa.ipc.new_file(str(tmp_path / "t.arrow"), schema) as writer:
            writer.write_table(pa.Table.from_pylist([{**first, **more}], schema))
        return tmp_path / "t.arrow"

    def groups(width="time_groups", at=3, **more):
        return [{**g, **more} if i == at else g for i, g in enumerate(first[width])]
    for more, word in [
            ({"time_groups": groups(t_start=2)}, "do not follow one another"),
            ({"time_groups": groups(t_end=2)}, "do not follow one another"),
            ({"time_groups": groups(at=0, t_start=5)}, "do not"),
            ({"time_groups": groups(zero_point=0.5)}, "no code"),
            ({"time_groups": groups(zero_point=256.0)}, "no code"),
            ({"time_groups": groups(zero_point=float("nan"))}, "no code"),
            ({"time_groups": groups(scale=0.0)}, "out of range"),
            ({"time_groups": groups(scale=float("inf"))}, "out of range"),
            ({"time_groups": groups(t_start=None)}, "null"),
            ({"time_groups": [None, *first["time_groups"][1:]]}, "null"),
            ({"time_groups": first["time_groups"][:6]}, "unequally many"),
            ({"time_groups": [], "time_groups_4bit": []}, "it has no"),
            ({"time_groups": first["time_groups"] * 15, "time_groups_4bit": first["time_groups"] * 15},
             "too many"),
            ({"time_groups_4bit": groups("time_groups_4bit", zero_point=16.0)}, "out of range")]:
        assert word in bad(aq, "inspect", write(**more)), more
    renamed = pa.list_(pa.struct([("begin", pa.int32()), ("t_end", pa.int32()), ("scale", pa.float32()),
                                  ("zero_point", pa.float32())]))
    wide = pa.list_(pa.struct([("t_start", pa.int64()), ("t_end", pa.int32()), ("scale", pa.float32()),
                               ("zero_point", pa.float32())]))
    at = table.schema.get_field_index("time_groups")
    for kind in (renamed, wide, pa.list_(pa.int32())):
        schema = table.schema.set(at, pa.field("time_groups", kind))
        value = [1] if kind.value_type == pa.int32() else [{kind.value_type[i].name: 0
                                                            for i in range(4)}]
        assert "column time_groups: expected" in bad(aq, "inspect", write(schema, time_groups=value))
    for more in ({"time_groups": None}, {"time_groups_4bit": None}):
        shown, = good_json(aq, "inspect", write(**more))["tensors"]
        assert "time_groups" not in shown
    shown, = good_json(aq, "inspect", write())["tensors"]
    assert "time_groups" in shown


@pytest.mark.parametrize("kind", [0, 1])
def test_others_read_our_file(kind, library, quantized, tmp_path):
    path = tmp_path / "t.arrow"
    expected = library.model(quantized).read_all()
    library.write(None, path, kind, library.model(quantized))
    opened = (pa.ipc.open_stream if kind else pa.ipc.open_file)(pa.memory_map(str(path)))
    table = opened.read_all()
    table.validate(full=True)
    assert table.equals(expected, check_metadata=True)
    for column in table["quantized_data"].chunks:
        assert column.buffers()[2].address % 64 == 0
    assert library.read(path).equals(expected, check_metadata=True)


def test_polars_reads_our_file(library, quantized, tmp_path):
    polars = pytest.importorskip("polars", reason="no polars here (requirements-heavy.txt)")
    library.write(None, tmp_path / "t.arrow", 0, library.model(quantized))
    frame = polars.read_ipc(tmp_path / "t.arrow")
    expected = library.model(quantized).read_all()
    assert frame["layer_name"].to_list() == expected["layer_name"].to_pylist()
    assert frame["quantized_data"].to_list() == expected["quantized_data"].to_pylist()
    assert frame["scales"].to_list() == expected["scales"].to_pylist()
    assert frame["time_groups"].null_count() == frame["time_groups_4bit"].null_count() == len(frame)


def test_duckdb_reads_our_file(library, quantized, tmp_path):
    duckdb = pytest.importorskip("duckdb", reason="no duckdb here (requirements-heavy.txt)")
    library.write(None, tmp_path / "t.arrow", 0, library.model(quantized))
    layers = pa.ipc.open_file(str(tmp_path / "t.arrow")).read_all()
    found = duckdb.sql("select bit_width, count(*), sum(octet_length(quantized_data)), "
                       "sum(len(scales)), min(shape[1]) from layers where method <> 'kept' "
                       "group by bit_width order by bit_width").fetchall()
    rows = [row for row in layers.to_pylist() if row["method"] != "kept"]
    assert found == [(bits, len(part), sum(len(row["quantized_data"]) for row in part),
                      sum(len(row["scales"]) for row in part), min(row["shape"][0] for row in part))
                     for bits in (4, 8)
                     for part in [[row for row in rows if row["bit_width"] == bits]]]


EVERYTHING = {
    "int": pa.array([1, None, 3, 4, 5, 6, 7, 8, 9, 10], pa.int16()),
    "bool": pa.array([True, False, None] * 3 + [True]),
    "text": pa.array(["x", "yy", None, "zzz é"] * 2 + ["q", "w"]),
    "list": pa.array([[1, 2], None, [], [3, None], [4, 5, 6]] * 2, pa.list_(pa.float32())),
    "large": pa.array([[[1]], [[2, 3], []]] * 5, pa.large_list(pa.list_(pa.int64()))),
    "fixed": pa.array([[1, 2]] * 9 + [None], pa.list_(pa.float64(), 2)),
    "struct": pa.array([{"p": 1, "q": "a"}, None] * 5),
    "binary": pa.array([b"1", b"22"] * 5, pa.large_binary()),
    "half": pa.array(np.arange(10), pa.float16()),
    "unsigned": pa.array(range(10), pa.uint64()),
}


@pytest.mark.parametrize("stream", [False, True])
def test_tables_of_pyarrow(stream, library, tmp_path):
    """Nulls, nesting and slices: written by us and by pyarrow, read by us and by pyarrow."""
    table = pa.table(EVERYTHING).replace_schema_metadata({"k": "v", "": ""})
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for first, count in [(0, 10), (0, 0), (3, 0), (1, 1), (1, 3), (8, 2), (9, 1), (5, 5)]:
        part = table.slice(first, count)
        library.write(part, ours, int(stream))
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(theirs), part.schema) as writer:
            writer.write_table(part, max_chunksize=2)
        for path in (ours, theirs):
            read = (pa.ipc.open_stream if stream else pa.ipc.open_file)(str(path)).read_all()
            read.validate(full=True)
            assert read.equals(part) and library.read(path).equals(part, check_metadata=True)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_compressed_buffers(codec, library, tmp_path):
    path = tmp_path / "t.arrow"
    options = pa.ipc.IpcWriteOptions(compression=codec)
    with pa.ipc.new_file(str(path), pa.schema([("a", pa.int64())]), options=options) as writer:
        writer.write_table(pa.table({"a": list(range(1000))}))
    with pytest.raises(pa.ArrowNotImplementedError, match=rf"compressed \({codec.upper()}\).*compression=None"):
        library.read(path)


@pytest.mark.parametrize("column, word", [
    (pa.array(["a", "b"]).dictionary_encode(), "dictionar"),
    (pa.array([1, 2], pa.timestamp("s")), "Timestamp"),
    (pa.array(["a", "b"], pa.string_view()), "Utf8View"),
    (pa.array([None, None]), "Null"),
])
def test_types_that_are_not_read(column, word, library, tmp_path):
    path = tmp_path / "t.arrow"
    table = pa.table({"c": column})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises((ValueError, pa.ArrowNotImplementedError), match=word):
        library.read(path)
    with pytest.raises(ValueError, match="column c"):
        library.write(table, tmp_path / "out.arrow")
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.arrow"]


# ---------------------------------------------------------------- the tool

def test_quantize_to_arrow(library, aq, digits, quantized, tmp_path):
    """A folder with a table in place of the weight files, one file, a sharded model in one table."""
    flags = ["--group-size", "64", "--layer-bits", "*attn1.to_q*=8", "--format", "arrow"]
    good(aq, "quantize", digits, tmp_path / "o", *flags)
    names = {path.relative_to(tmp_path / "o").as_posix() for path in (tmp_path / "o").rglob("*")
             if path.is_file()}
    assert names == {"arrowquant_report.json", "model_index.json", "scheduler/scheduler_config.json",
                     "transformer/config.json", "transformer/diffusion_pytorch_model.arrow"}
    good(aq, "quantize", digits, tmp_path / "o.arrow", *flags)
    expected = library.model(quantized).read_all()
    for path in ("o.arrow", "o/transformer/diffusion_pytorch_model.arrow"):
        assert library.read(tmp_path / path).equals(expected, check_metadata=True)
    result = good_json(aq, "quantize", digits, tmp_path / "o.arrow", *flags, "--overwrite")
    assert result["model_size_mb"] == (tmp_path / "o.arrow").stat().st_size / 1e6
    shown = good_json(aq, "inspect", tmp_path / "o.arrow")["tensors"]
    assert [tensor["name"] for tensor in shown] == expected["layer_name"].to_pylist()
    validated = good_json(aq, "validate", digits, tmp_path / "o.arrow")
    assert validated["passed"]
    message = bad(aq, "quantize", digits, tmp_path / "o2", *flags, "--resume")
    assert "resume" in message and not (tmp_path / "o2").exists()
    sharded_folder(tmp_path / "m", llm_tensors())
    good(aq, "quantize", tmp_path / "m", tmp_path / "s", "--format", "arrow")
    good(aq, "quantize", tmp_path / "m", tmp_path / "n")
    table, = (tmp_path / "s").glob("*.arrow")
    assert table.name == "model.arrow" and not list((tmp_path / "s").glob("*.safetensors*"))
    assert library.read(table).equals(library.model(tmp_path / "n").read_all())


def test_tables_of_others_as_models(library, aq, quantized, tmp_path):
    """What polars or pyarrow write of such a table is a model too; what is wrong with one is named."""
    table = library.model(quantized).read_all()

    def write(part, name="t.arrow"):
        with pa.ipc.new_file(str(tmp_path / name), part.schema) as writer:
            writer.write_table(part)
        return tmp_path / name
    wide = table.cast(pa.schema([field.with_type(pa.large_string()) if field.type == pa.string() else
                                 field.with_type(pa.large_list(field.type.value_type))
                                 if pa.types.is_list(field.type) else field
                                 for field in table.schema]))
    for part in (table.drop_columns(["time_groups", "cosine", "sqnr_db", "method"]), wide,
                 table.combine_chunks()):
        compared = good_json(aq, "diff", quantized, write(part))
        assert len(compared["layers"]) == 82
        assert all(layer["sqnr_db"] is None for layer in compared["layers"])
    rows = table.to_pylist()
    first = next(i for i, row in enumerate(rows) if row["method"] != "kept")

    def changed(**more):
        return write(pa.Table.from_pylist([{**rows[first], **more}, rows[first - 1]], table.schema))
    for more, word in [({"quantized_data": b"12"}, "does not fit shape"), ({"bit_width": 3}, "range"),
                       ({"group_size": 48}, "range"), ({"scales": [1.0]}, "one parameter"),
                       ({"scales": None}, "no scales"), ({"shape": [-1, 4]}, "negative"),
                       ({"shape": [2**62, 2**62]}, "overflows"), ({"dtype": "X"}, "dtype"),
                       ({"layer_name": rows[first - 1]["layer_name"]}, "twice"),
                       ({"mins": None, "zero_points": [0.5] * len(rows[first]["scales"])}, "codes"),
                       ({"group_size": 0}, "does not fit shape and dtype")]:
        assert word in bad(aq, "inspect", changed(**more))
    for column in ("layer_name", "quantized_data", "scales", "shape", "bit_width", "group_size"):
        assert f"no column {column}" in bad(aq, "inspect", write(table.drop_columns([column])))
    odd = table.set_column(5, "bit_width", table["bit_width"].cast(pa.int32()))
    assert "column bit_width" in bad(aq, "inspect", write(odd))
