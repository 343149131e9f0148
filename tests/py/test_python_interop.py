"""The Python module with NumPy, ml_dtypes, torch, JAX, pyarrow, polars and safetensors: the same results
from each of them, without copies where none are needed."""
import array
import gc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra import numpy as hnp

from tool_models import gaussian, to_bfloat16


def need_package(name):
    return pytest.importorskip(name, reason=f"{name} is not installed (requirements-heavy.txt)")


def codes(module, x, bits=4):
    tensor = module.ArrowQuantV2().quantize({"x": x}, bits)["x"]
    return tensor.codes.tobytes(), tensor.params.tobytes(), tensor.shape


# ---------------------------------------------------------------- NumPy

@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f2", ">f4", ">f8"])
def test_numpy_dtypes(module, dtype):
    x = gaussian(1, 24, 96).astype(dtype)
    assert codes(module, x) == codes(module, x.astype(x.dtype.newbyteorder("=")).copy())
    if dtype[-2:] == "f8":  # rounded once
        assert codes(module, x)[2] == (24, 96)


def test_strides(module):
    """Transposed, reversed, stepped, broadcast, misaligned: as their contiguous copies."""
    x = gaussian(2, 30, 8, 40)
    raw = np.frombuffer(b"\0" + x.tobytes(), "u1")[1:].view("f4").reshape(x.shape)
    views = [x.transpose(2, 0, 1), x[::-1], x[:, ::3, ::2], x[..., ::-1], x[5], x[:, 3],
             np.broadcast_to(x[0], (4, 8, 40)), raw, np.asfortranarray(x), x[:, :, :1], x[:0]]
    for view in views:
        assert codes(module, view) == codes(module, view.copy())
        big = view.astype(">f4")
        assert codes(module, big) == codes(module, view.copy())


def test_memoryview_and_array(module):
    x = gaussian(3, 6, 64)
    assert codes(module, memoryview(x)) == codes(module, x)
    assert codes(module, array.array("f", x.ravel())) == codes(module, x.ravel())
    assert codes(module, x.tolist()) == codes(module, x.astype("f8"))
    bits = np.frombuffer(to_bfloat16(x), "u2").reshape(x.shape)
    wide = (bits.astype("u4") << 16).view("f4")
    assert codes(module, bits)[0] == codes(module, wide)[0]


def test_ml_dtypes(module):
    ml_dtypes = need_package("ml_dtypes")
    x = gaussian(4, 16, 64).astype(ml_dtypes.bfloat16)
    assert codes(module, x) == codes(module, x.view("u2")) == codes(module, x.astype("f4"))
    tensor = module.ArrowQuantV2().quantize({"x": x}, 8)["x"]
    assert tensor.dtype == "bfloat16"
    back = tensor.dequantize("bfloat16").numpy()
    assert back.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(back, np.asarray(tensor).astype(ml_dtypes.bfloat16))


def test_no_copy_in_or_out(module):
    """The memory itself: a view of ours is at one address, and lives as long as it is looked at."""
    tensor = module.ArrowQuantV2().quantize({"x": gaussian(5, 64, 64)}, 4)["x"]
    first, second = np.asarray(tensor.codes), np.asarray(tensor.codes)
    assert first.ctypes.data == second.ctypes.data
    values = tensor.dequantize()
    a, b = np.asarray(values), np.from_dlpack(values)
    assert a.ctypes.data == b.ctypes.data and a.ctypes.data % 64 == 0
    kept = a.copy()
    del tensor, values, first, second, b
    gc.collect()
    np.testing.assert_array_equal(a, kept)


# ---------------------------------------------------------------- torch, JAX, DLPack

def test_torch(module):
    torch = need_package("torch")
    x = torch.from_numpy(gaussian(6, 40, 96))
    for tensor in (x, x.half(), x.double(), x.bfloat16(), x.t(), x[::2, 1::3], torch.nn.Parameter(x),
                   x.reshape(8, 5, 12, 8).permute(0, 3, 1, 2)):
        plain = tensor.detach().contiguous()
        expected = plain.numpy() if plain.dtype != torch.bfloat16 else plain.view(torch.uint16).numpy()
        assert codes(module, tensor) == codes(module, expected)
    made = module.ArrowQuantV2().quantize({"x": x}, 4)["x"]
    values = torch.from_dlpack(made)
    np.testing.assert_array_equal(values.numpy(), np.asarray(made))
    shared = made.dequantize()
    view = torch.from_dlpack(shared)
    view[0, 0] = 42
    assert shared[0][0] == 42
    half = torch.from_dlpack(made.dequantize(torch.bfloat16))
    assert half.dtype == torch.bfloat16 and torch.equal(half, values.bfloat16())
    with pytest.raises((TypeError, ValueError, BufferError)):
        module.ArrowQuantV2().quantize({"x": torch.zeros(2, 2, device="meta")})
    with pytest.raises(TypeError, match="DLPack type"):
        module.ArrowQuantV2().quantize({"x": torch.zeros(2, 2, dtype=torch.int32)})


def test_jax(module):
    need_package("jax")
    import jax.numpy as jnp
    x = gaussian(7, 24, 64)
    assert codes(module, jnp.asarray(x)) == codes(module, x)
    half = jnp.asarray(x, jnp.bfloat16)
    assert codes(module, half) == codes(module, np.asarray(half.astype(jnp.float32)))
    made = module.ArrowQuantV2().quantize({"x": x}, 8)["x"]
    np.testing.assert_array_equal(np.asarray(jnp.from_dlpack(made)), np.asarray(made))


class OldDLPack:
    """A producer from before DLPack 1.0."""

    def __init__(self, x):
        self.x = x

    def __dlpack__(self, stream=None):
        return self.x.__dlpack__()

    def __dlpack_device__(self):
        return self.x.__dlpack_device__()


def test_dlpack(module):
    x = gaussian(8, 12, 80)
    assert codes(module, OldDLPack(x)) == codes(module, x)
    made = module.ArrowQuantV2().quantize({"x": x}, 4)["x"]
    np.testing.assert_array_equal(np.from_dlpack(made), np.asarray(made))
    capsule = made.dequantize().__dlpack__()  # nobody takes it
    assert "dltensor" in repr(capsule)
    del capsule
    with pytest.raises(BufferError, match="read-only"):
        made.codes.__dlpack__()
    assert "dltensor_versioned" in repr(made.codes.__dlpack__(max_version=(1, 0)))
    copied = made.codes.__dlpack__(copy=True)
    assert made.codes.__dlpack_device__() == (1, 0) and copied
    with pytest.raises(BufferError):
        made.__dlpack__(dl_device=(2, 0))


# ---------------------------------------------------------------- Arrow

def weights_table(pa, weights, kind=None, shapes=True):
    columns = {"layer_name": pa.array(list(weights), pa.string()),
               "weights": pa.array([w.ravel() for w in weights.values()],
                                   kind or pa.list_(pa.float32()))}
    if shapes:
        columns["shape"] = pa.array([list(w.shape) for w in weights.values()], pa.list_(pa.int64()))
    return pa.table(columns)


def check_layers(module, made, weights, bits):
    """Rows of a result against quantize of the same arrays."""
    alone = module.ArrowQuantV2().quantize(weights, bits)
    assert [row["layer_name"] for row in made] == list(weights)
    for row in made:
        tensor = alone[row["layer_name"]]
        assert row["quantized_data"] == tensor.codes.tobytes()
        assert row["scales"] == tensor.scales.tolist()
        assert row["zero_points"] == tensor.zero_points.tolist()
        assert row["shape"] == list(tensor.shape) and row["bit_width"] == bits
        assert row["group_size"] == tensor.group_size


WEIGHTS = {"a": gaussian(10, 8, 64), "b.weight": gaussian(11, 4, 3, 5), "ü": gaussian(12, 256)}


def test_pyarrow_arrays(module):
    pa = need_package("pyarrow")
    x = gaussian(9, 8, 64)
    flat = pa.array(x.ravel())
    fixed = pa.FixedSizeListArray.from_arrays(flat, 64)
    assert codes(module, flat)[2] == (512,) and codes(module, fixed) == codes(module, x)
    assert codes(module, fixed[2:6]) == codes(module, x[2:6])
    assert codes(module, pa.chunked_array([flat[:100], flat[100:]])) == codes(module, x.ravel())
    assert codes(module, pa.chunked_array([flat[i:i + 1] for i in range(512)])) == codes(module, x.ravel())
    assert codes(module, pa.chunked_array([fixed[i:i + 1] for i in range(8)])) == codes(module, x)
    assert codes(module, pa.array(x.ravel().astype("f2"))) == codes(module, x.ravel().astype("f2"))
    for bad in (pa.array([1, 2]), pa.array([1.0, None]), pa.array(["x"]), pa.array([[1.0], [2.0, 3.0]])):
        with pytest.raises((TypeError, ValueError)):
            codes(module, bad)
    made = module.ArrowQuantV2().quantize({"x": x}, 4)["x"]
    values = pa.array(made)
    assert values.type == pa.list_(pa.float32(), 64) and values.to_pylist() == np.asarray(made).tolist()
    shared = made.dequantize()
    assert pa.array(shared).flatten().buffers()[1].address == np.asarray(shared).ctypes.data
    assert pa.array(made.quantized_data).to_pylist() == list(made.codes.tobytes())


def test_quantize_arrow(module):
    pa = need_package("pyarrow")
    quantizer = module.ArrowQuantV2()
    table = weights_table(pa, WEIGHTS)
    made = quantizer.quantize_arrow(table, bit_width=4)
    assert isinstance(made, pa.Table)
    made.validate(full=True)
    fields = {field.name: field.type for field in made.schema}
    assert fields["layer_name"] == pa.string() and fields["quantized_data"] == pa.binary()
    assert fields["scales"] == fields["zero_points"] == pa.list_(pa.float32())
    assert fields["shape"] == pa.list_(pa.int64()) and fields["bit_width"] == pa.uint8()
    check_layers(module, made.to_pylist(), WEIGHTS, 4)
    batch = quantizer.quantize_arrow_batch(table.to_batches()[0], 8)
    assert isinstance(batch, pa.RecordBatch)
    check_layers(module, batch.to_pylist(), WEIGHTS, 8)
    large = weights_table(pa, WEIGHTS, pa.large_list(pa.float32()))
    check_layers(module, quantizer.quantize_arrow(large, 2).to_pylist(), WEIGHTS, 2)
    flat = quantizer.quantize_arrow(weights_table(pa, WEIGHTS, shapes=False), 4).to_pylist()
    assert [row["shape"] for row in flat] == [[w.size] for w in WEIGHTS.values()]
    chunked = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    check_layers(module, quantizer.quantize_arrow(chunked, 4).to_pylist(), WEIGHTS, 4)
    empty = quantizer.quantize_arrow(table.slice(0, 0))
    assert empty.num_rows == 0 and empty.schema == made.schema


def test_arrow_errors(module):
    pa = need_package("pyarrow")
    quantizer = module.ArrowQuantV2()
    bad = {**WEIGHTS, "nan": np.full((2, 32), np.nan, "f4")}
    batch = weights_table(pa, bad).combine_chunks().to_batches()[0]
    with pytest.raises(module.QuantizationError, match="nan"):
        quantizer.quantize_arrow_batch(batch, 4)
    with pytest.warns(RuntimeWarning, match="1 of 4 layers"):
        made = quantizer.quantize_arrow_batch(batch, 4, continue_on_error=True)
    check_layers(module, made.to_pylist(), WEIGHTS, 4)
    table = weights_table(pa, WEIGHTS)
    with pytest.raises(module.QuantizationError, match="weights"):
        quantizer.quantize_arrow(table.drop_columns(["weights"]))
    with pytest.raises(module.ShapeMismatchError):
        quantizer.quantize_arrow(table.set_column(
            2, "shape", pa.array([[3, 3]] * 3, pa.list_(pa.int64()))))
    with pytest.raises(TypeError, match="capsules"):
        quantizer.quantize_arrow({"layer_name": []})


def test_polars(module):
    pl = need_package("polars")
    series = pl.Series(gaussian(13, 300))
    assert codes(module, series) == codes(module, series.to_numpy())
    joined = pl.concat([series[:100], series[100:]], rechunk=False)
    assert codes(module, joined) == codes(module, series)
    frame = pl.DataFrame({"layer_name": list(WEIGHTS),
                          "weights": [w.ravel().tolist() for w in WEIGHTS.values()],
                          "shape": [list(w.shape) for w in WEIGHTS.values()]},
                         schema={"layer_name": pl.String, "weights": pl.List(pl.Float32),
                                 "shape": pl.List(pl.Int64)})
    layers = module.ArrowQuantV2().quantize_arrow(frame, 4)
    assert isinstance(layers, module.LayerTable) and len(layers) == 3 and layers.errors == {}
    check_layers(module, pl.DataFrame(layers).to_dicts(), WEIGHTS, 4)


def test_safetensors(module, tmp_path):
    """Both ways with the reference package: its arrays in, our dequantized models out."""
    reference = need_package("safetensors.numpy")
    load_file, save_file = reference.load_file, reference.save_file
    weights = {f"layers.{i}.w.weight": gaussian(i, 64, 96) for i in range(3)}
    save_file(weights, tmp_path / "m.safetensors")
    loaded = load_file(tmp_path / "m.safetensors")
    module.ArrowQuantV2().quantize_from_safetensors(tmp_path / "m.safetensors",
                                                    tmp_path / "q.safetensors")
    with module.load_model(tmp_path / "q.safetensors") as model:
        for name, tensor in module.ArrowQuantV2().quantize(loaded, 4).items():
            assert model[name].codes == tensor.codes
        save_file({name: model[name].numpy() for name in model}, tmp_path / "back.safetensors")
    module.dequantize_model(tmp_path / "q.safetensors", tmp_path / "plain.safetensors", "float32")
    back, plain = load_file(tmp_path / "back.safetensors"), load_file(tmp_path / "plain.safetensors")
    assert set(back) == set(plain)
    for name in plain:
        np.testing.assert_array_equal(back[name], plain[name])


# ---------------------------------------------------------------- anything

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=40)
FLOATS = st.sampled_from(["f2", "f4", "f8"])
ARRAYS = FLOATS.flatmap(lambda dtype: hnp.arrays(
    dtype, SHAPES, elements=st.floats(-100, 100, width=16)))


@given(st.dictionaries(st.text(min_size=1, max_size=8), ARRAYS, max_size=6), st.sampled_from([2, 4, 8]),
       st.sampled_from([32, 64, 128, 256]), st.booleans(), st.sampled_from([8, 16]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_batch(module, weights, bits, group, symmetric, parameter_bits):
    """Whatever comes: shapes kept, the batch equals each alone, every value within its group's range."""
    config = module.DiffusionQuantConfig(group_size=group, symmetric=symmetric,
                                         parameter_bits=parameter_bits)
    quantizer = module.ArrowQuantV2()
    made = quantizer.quantize_batch(weights, bits, config=config)
    assert list(made) == list(weights)
    for name, x in weights.items():
        record = made[name]
        alone = quantizer.quantize({name: x}, bits, config=config)[name]
        assert record["shape"] == list(x.shape)
        assert record["quantized_data"] == alone.quantized_data
        assert record["scales"] == alone.scales
        back = np.asarray(record["tensor"])
        assert back.shape == x.shape and np.isfinite(back).all()
        if x.size:
            span = float(x.max()) - float(x.min()) + 2 * float(np.abs(x).max())
            assert np.abs(back - x).max() <= max(span, 1e-6)


@given(st.lists(hnp.arrays("f4", hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=16),
                           elements=st.floats(-8, 8, width=32)), max_size=5),
       st.sampled_from([2, 4, 8]), st.booleans(), st.integers(0, 3))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_table(module, arrays, bits, large, cut):
    pa = need_package("pyarrow")
    weights = {f"l{i}": x for i, x in enumerate(arrays)}
    kind = pa.large_list(pa.float32()) if large else pa.list_(pa.float32())
    table = weights_table(pa, weights, kind)
    cut = min(cut, len(weights))
    table = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    made = module.ArrowQuantV2().quantize_arrow(table, bits)
    made.validate(full=True)
    check_layers(module, made.to_pylist(), weights, bits)
