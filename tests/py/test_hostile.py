"""Hand-made bad models through the tool. Each is refused with exit status 1, one message that names the
file and the cause, and no output. tests/fixtures/hostile.txt holds the messages, to be reviewed by
diff; AQ_UPDATE_GOLDEN=1 rewrites it. test_safetensors.py has many more bad headers."""
import json
import os
import pathlib
import resource
import struct
import zlib

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

from tool_models import bad, files_of, gaussian, good, run, write_json, write_safetensors

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "fixtures/hostile.txt"
CASES = {}


def case(name, command="inspect", path="m.safetensors"):
    """A case: a function that makes files below the folder it is given; then `command` of `path`."""
    def add(function):
        assert name not in CASES
        CASES[name] = (function, command, path)
        return function
    return add


def cases(prefix, table, make, command="inspect", path="m.safetensors"):
    for name, value in table.items():
        case(f"{prefix}: {name}", command, path)(lambda folder, value=value: make(folder, value))


def image(header, data=b"", size=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + data


# ---------------------------------------------------------------- safetensors

A = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
F = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
cases("safetensors", {
    "nothing in it": b"", "half a size": b"\5\0\0", "a size and no header": image(b"", size=2),
    "a header of 2^63 bytes": image(b"{}", size=1 << 63),
    "a header of 100000001 bytes": image(b"{}", size=100_000_001),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "a web page": b"<!DOCTYPE html><html><body>401 Unauthorized</body></html>",
    "a pickle": b"PK\3\4" + b"\0" * 60, "a GGUF file": b"GGUF\3\0\0\0" + b"\0" * 60,
    "header cut short": image(b'{"a":{"dtype":"U8"'), "header is an array": image(b"[]"),
    "data cut short": image({"a": F}, b"\0" * 15), "data goes on": image({"a": A}, b"abc"),
    "overlapping tensors": image({"a": A, "b": {**A, "data_offsets": [1, 3]}}, b"abc"),
    "a hole": image({"a": A, "b": {**A, "data_offsets": [3, 5]}}, b"abcde"),
    "offsets backwards": image({"a": {**A, "data_offsets": [2, 0]}}, b"ab"),
    "offsets of 2^64-1": image({"a": {**A, "data_offsets": [0, 2**64 - 1]}}, b"ab"),
    "shape and offsets disagree": image({"a": {**F, "shape": [2, 3]}}, b"\0" * 16),
    "a shape that overflows": image({"a": {**F, "shape": [2**62, 2**62]}}, b"\0" * 16),
    "a negative shape": image({"a": {**F, "shape": [-2, -2]}}, b"\0" * 16),
    "a shape of 2.0": image(b'{"a":{"dtype":"U8","shape":[2.0],"data_offsets":[0,2]}}', b"ab"),
    "an unknown dtype": image({"a": {**A, "dtype": "Q4_K"}}, b"ab"),
    "a complex dtype": image({"a": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, b"a" * 8),
    "no dtype": image({"a": {"shape": [2], "data_offsets": [0, 2]}}, b"ab"),
    "a name twice": image(b'{"a":%s,"a":%s}' % (json.dumps(A).encode(), json.dumps(A).encode()), b"ab"),
    "a NUL in a name": image({"a\0b": A}, b"ab"),
    "a name that is not UTF-8": image(b'{"\xff":%s}' % json.dumps(A).encode(), b"ab"),
    "metadata of numbers": image({"__metadata__": {"a": 1}}),
    "65 levels": image(b'{"a":{"x":' + b"[" * 65 + b"]" * 65 + b"}}"),
}, lambda folder, one: (folder / "m.safetensors").write_bytes(one))


@case("safetensors: a folder of that name")
def _(folder):
    (folder / "m.safetensors").mkdir()


@case("safetensors: a pipe")
def _(folder):
    os.mkfifo(folder / "m.safetensors")


@case("safetensors: a link that leads nowhere")
def _(folder):
    (folder / "m.safetensors").symlink_to("gone")


# ---------------------------------------------------------------- index

def shards(folder, index, more=None):
    folder = folder / "m"
    folder.mkdir()
    write_json(folder / "config.json", {})
    write_safetensors(folder / "a.safetensors", {"x": gaussian(1, 4, 64), "y": gaussian(2, 4)})
    write_safetensors(folder / "b.safetensors", more or {"z": gaussian(3, 4, 64)})
    name = folder / "model.safetensors.index.json"
    name.write_bytes(index) if isinstance(index, bytes) else write_json(name, index)


MAP = {"x": "a.safetensors", "y": "a.safetensors", "z": "b.safetensors"}
cases("index", {
    "nothing in it": b"", "not JSON": b"weight_map", "cut short": b'{"weight_map": {"x": "a.safe',
    "a list": [], "no weight_map": {"metadata": {}}, "weight_map is a list": {"weight_map": ["x"]},
    "weight_map is null": {"weight_map": None}, "no tensor": {"weight_map": {}},
    "a shard that is a number": {"weight_map": {**MAP, "z": 1}},
    "a shard outside": {"weight_map": {**MAP, "z": "../b.safetensors"}},
    "an absolute shard": {"weight_map": {**MAP, "z": "/etc/passwd"}},
    "a shard behind a backslash": {"weight_map": {**MAP, "z": "..\\b.safetensors"}},
    "a shard on a drive": {"weight_map": {**MAP, "z": "C:b.safetensors"}},
    "an empty shard name": {"weight_map": {**MAP, "z": ""}},
    "a shard that is missing": {"weight_map": {**MAP, "z": "c.safetensors"}},
    "a tensor that is missing": {"weight_map": {**MAP, "more": "b.safetensors"}},
    "a tensor that is not listed": {"weight_map": {"x": "a.safetensors", "z": "b.safetensors"}},
    "a tensor in the other shard": {"weight_map": {**MAP, "y": "b.safetensors"}},
    "a tensor twice": b'{"weight_map":{"x":"a.safetensors","y":"a.safetensors","x":"b.safetensors"}}',
    "weight_map twice": b'{"weight_map":{},"weight_map":{}}',
    "a NUL in a name": {"weight_map": {**MAP, "a\0b": "b.safetensors"}},
    "metadata is a list": {"metadata": [], "weight_map": MAP},
    "text after": b'{"weight_map":{}} x',
}, shards, "quantize", "m")


@case("index: a tensor in two shards", "quantize", "m")
def _(folder):
    shards(folder, {"weight_map": MAP}, {"z": gaussian(3, 4, 64), "x": gaussian(1, 4, 64)})


@case("index: none, and two files", "quantize", "m")
def _(folder):
    shards(folder, {"weight_map": MAP})
    (folder / "m/model.safetensors.index.json").unlink()


@case("index: none, and a numbered shard is missing", "quantize", "m")
def _(folder):
    (folder / "m").mkdir()
    write_safetensors(folder / "m/model-00001-of-00003.safetensors", {"x": gaussian(1, 4, 64)})
    write_safetensors(folder / "m/model-00003-of-00003.safetensors", {"y": gaussian(1, 4, 64)})


@case("index: none, and a tensor in two numbered shards", "quantize", "m")
def _(folder):
    (folder / "m").mkdir()
    for number in (1, 2):
        write_safetensors(folder / f"m/model-0000{number}-of-00002.safetensors",
                          {"x": gaussian(1, 4, 64), f"y{number}": gaussian(2, 4)})


# ---------------------------------------------------------------- compressed-tensors

CT_GROUP = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", "symmetric": False,
                                               "strategy": "group", "group_size": 32}}
CT_CONFIG = {"quant_method": "compressed-tensors", "format": "pack-quantized",
             "config_groups": {"group_0": CT_GROUP}}
CT_LAYER = {"a.weight_packed": np.zeros((3, 8), "<i4"), "a.weight_scale": np.ones((3, 2), "<f2"),
            "a.weight_shape": np.array([3, 64], "<i8"), "a.weight_zero_point": np.zeros((1, 2), "<i4")}


def compressed(folder, change):
    """The layer and the config with some of it changed; None takes a tensor or member away."""
    (folder / "m").mkdir()
    config, layer = ({**base, **{key: value for key, value in change.items()
                                 if (key in CT_CONFIG) == (base is CT_CONFIG)}}
                     for base in (CT_CONFIG, CT_LAYER))
    write_json(folder / "m/config.json", {"quantization_config": {
        key: value for key, value in config.items() if value is not None}})
    write_safetensors(folder / "m/model.safetensors",
                      {key: value for key, value in layer.items() if value is not None})


def group(**weights):
    more = weights.pop("more", {})
    return {"config_groups": {"g": {**CT_GROUP, **more,
                                    "weights": {**CT_GROUP["weights"], **weights}}}}


cases("compressed-tensors", {
    "another format": {"format": "int-quantized"}, "no format": {"format": None},
    "no groups": {"config_groups": {}}, "groups are a list": {"config_groups": [CT_GROUP]},
    "a group without weights": {"config_groups": {"g": {"targets": ["Linear"]}}},
    "3 bits": group(num_bits=3), "bits as text": group(num_bits="4"), "floats": group(type="float"),
    "a scale for each channel": group(strategy="channel"),
    "activations": group(more={"input_activations": {"num_bits": 8}}),
    "symmetric with zero points": group(symmetric=True),
    "affine without zero points": {"a.weight_zero_point": None},
    "no scale": {"a.weight_scale": None}, "no shape": {"a.weight_shape": None},
    "an order of columns": {"a.weight_g_idx": np.zeros(64, "<i4")},
    "a shape of floats": {"a.weight_shape": np.array([3, 64], "<f8")},
    "a shape of 3": {"a.weight_shape": np.array([3, 8, 8], "<i8")},
    "a negative shape": {"a.weight_shape": np.array([-3, 64], "<i8")},
    "a shape of 2^62": {"a.weight_shape": np.array([3, 2**62], "<i8")},
    "a shape that does not fit": {"a.weight_shape": np.array([3, 128], "<i8")},
    "codes of another width": group(num_bits=8),
    "codes of floats": {"a.weight_packed": np.zeros((3, 8), "<f4")},
    "scales of integers": {"a.weight_scale": np.ones((3, 2), "<i4")},
    "scales for other rows": {"a.weight_scale": np.ones((4, 2), "<f2")},
    "scales for groups of 16": {"a.weight_scale": np.ones((3, 4), "<f2")},
    "scales for groups of 64/3": {"a.weight_scale": np.ones((3, 3), "<f2")},
    "zero points as bytes": {"a.weight_zero_point": np.zeros((3, 2), "u1")},
    "zero points for other rows": {"a.weight_zero_point": np.zeros((3, 2), "<i4")},
    "a layer twice": {"a.weight": np.ones((3, 64), "<f4")},
    "groups of 0": group(group_size=0), "groups of 48": group(group_size=48),
    "groups of -1": group(group_size=-1), "groups of 2^40": group(group_size=2**40),
    "a group size as text": group(group_size="32"), "no bits": group(num_bits=None),
    "-4 bits": group(num_bits=-4), "4.5 bits": group(num_bits=4.5),
    "symmetric as text": group(symmetric="no"), "chosen on the fly": group(dynamic=True),
    "groups of 64, stored 32": group(group_size=64),
    "a group is a list": {"config_groups": {"g": [CT_GROUP]}},
    "weights are a list": {"config_groups": {"g": {**CT_GROUP, "weights": [4]}}},
    "two shapes for one layer": {"a.weight_shape": np.array([[3, 64]], "<i8")},
    "codes in one row": {"a.weight_packed": np.zeros(24, "<i4")},
    "codes of one word less": {"a.weight_packed": np.zeros((3, 7), "<i4")},
    "codes without rows": {"a.weight_packed": np.zeros((0, 8), "<i4")},
}, compressed, "inspect", "m")


# ---------------------------------------------------------------- Arrow

ARROW_SEEDS = pathlib.Path(__file__).resolve().parents[1] / "fuzz/seeds/arrow"
ARROW_FILE, ARROW_STREAM = ((ARROW_SEEDS / name).read_bytes() for name in ("ints", "text"))


def patched(at, new, image=None):
    image = bytearray(ARROW_FILE if image is None else image)
    image[at:at + len(new) if at + len(new) else None] = new
    return bytes(image)


ARROW_FOOTER = len(ARROW_FILE) - 10 - int.from_bytes(ARROW_FILE[-10:-6], "little")
ARROW_BATCH = ARROW_FILE.index(b"\xff" * 4, 12)
ARROW_BLOCK = ARROW_FILE.index(ARROW_BATCH.to_bytes(8, "little"), ARROW_FOOTER)
ZEROS, MINUS, MOST = b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f"
cases("Arrow", {
    "nothing in it": b"", "the magic alone": b"ARROW1\0\0", "cut short": ARROW_FILE[:-20],
    "no magic at the end": patched(-1, b"2"), "a footer of 2^31 bytes": patched(-10, b"\0\0\0\x80"),
    "a footer larger than the file": patched(-10, b"\xff\xff\0\0"),
    "a footer of 0 bytes": patched(-10, b"\0\0\0\0"),
    "a root outside": patched(ARROW_FOOTER, b"\xff\xff\xff\x7f"),
    "a batch outside": patched(ARROW_BLOCK, (1 << 40).to_bytes(8, "little")),
    "a batch of another size": patched(ARROW_BLOCK + 16, b"\0\1"),
    "a batch without its marker": patched(ARROW_BATCH, b"\0\0\0\0"),
    "a stream cut in its schema": ARROW_STREAM[:60], "a stream cut in its batch": ARROW_STREAM[:-40],
    "a stream that begins with its batch": ARROW_STREAM[ARROW_STREAM.index(b"\xff" * 4, 4):],
    "a message of 2^31 bytes": patched(4, b"\0\0\0\x80", ARROW_STREAM),
    "a message of 12 bytes": patched(4, b"\x0c\0\0\0", ARROW_STREAM),
    "another table": ARROW_FILE, "a GGUF file": b"GGUF\3\0\0\0" + b"\0" * 60,
    "parquet": b"PAR1" + b"\0" * 60 + b"PAR1",
    **{name: patched(at, new, source) for name, at, new, source in (
        ("a batch of metadata version 1", 156, ZEROS, ARROW_FILE),
        ("a message without header", 160, ZEROS, ARROW_FILE),
        ("a list of fields outside", 164, MOST, ARROW_FILE),
        ("a body of 2^32 bytes", 176, MINUS, ARROW_FILE),
        ("a node that is missing", 192, ZEROS, ARROW_FILE),
        ("a list longer than its message", 204, b"\3\0\0\0", ARROW_FILE),
        ("a column longer than its batch", 208, MOST, ARROW_FILE),
        ("a batch of -2^32 rows", 212, MINUS, ARROW_FILE),
        ("a buffer that is missing", 220, ZEROS, ARROW_FILE),
        ("a buffer too many", 220, b"\3\0\0\0", ARROW_FILE),
        ("a buffer outside", 224, MOST, ARROW_FILE),
        ("a buffer that is not aligned", 224, b"\3\0\0\0", ARROW_FILE),
        ("a buffer at -2^32", 228, MINUS, ARROW_FILE),
        ("a buffer too small", 232, ZEROS, ARROW_FILE),
        ("a buffer of -2^32 bytes", 236, MINUS, ARROW_FILE),
        ("another number of nulls", 272, b"\3\0\0\0", ARROW_FILE),
        ("-2^32 nulls", 276, MINUS, ARROW_FILE),
        ("a footer without schema", 312, ZEROS, ARROW_FILE),
        ("dictionaries", 368, b"\3\0\0\0", ARROW_FILE),
        ("a field outside of its table", 376, MINUS, ARROW_FILE),
        ("a type of the future", 416, MINUS, ARROW_FILE),
        ("a name without an end", 436, ZEROS, ARROW_FILE),
        ("a name that is not UTF-8", 440, ZEROS, ARROW_FILE),
        ("a negative first offset", 288, MINUS, ARROW_STREAM),
        ("offsets that go back", 292, MINUS, ARROW_STREAM),
        ("a text that is not UTF-8", 304, MINUS, ARROW_STREAM))},
}, lambda folder, one: (folder / "m.arrow").write_bytes(one), "inspect", "m.arrow")


# ---------------------------------------------------------------- configurations of a model

def plain(folder, name, text):
    (folder / "m").mkdir(exist_ok=True)
    write_safetensors(folder / "m/model.safetensors", {"x": gaussian(1, 4, 64)})
    (folder / "m" / name).write_bytes(text)


BAD_JSON = {
    "nothing in it": b"", "not JSON": b"architectures: [x]", "a list": b"[]", "cut short": b'{"a": 1',
    "not UTF-8": b'{"a": "\xff"}', "a byte order mark": b"\xef\xbb\xbf{}", "NaN": b'{"a": NaN}',
    "a trailing comma": b'{"a": 1,}', "a key twice": b'{"a": 1, "a": 2}',
    "70 levels": b'{"a":' + b"[" * 70 + b"]" * 70 + b"}",
}
for file in ("config.json", "metadata.json"):
    cases(file, BAD_JSON, lambda folder, text, file=file: plain(folder, file, text), "quantize", "m")
CASES.pop("metadata.json: a list")  # holds no modality, and is carried over as it is


@case("config.json: quantized by something else", "quantize", "m")
def _(folder):
    plain(folder, "config.json", b'{"quantization_config": {"quant_method": "gptq"}}')


def pipeline(folder, index, unet=True):
    (folder / "m/unet").mkdir(parents=True)
    (folder / "m/model_index.json").write_bytes(index)
    if unet:
        write_safetensors(folder / "m/unet/diffusion_pytorch_model.safetensors",
                          {"x": gaussian(1, 4, 64)})


cases("model_index.json", BAD_JSON, pipeline, "quantize", "m")


@case("model_index.json: an empty denoiser", "quantize", "m")
def _(folder):
    pipeline(folder, b"{}", False)


@case("model_index.json: no denoiser", "quantize", "m")
def _(folder):
    pipeline(folder, b"{}", False)
    (folder / "m/unet").rename(folder / "m/vae")


@case("model_index.json: a broken component", "quantize", "m")
def _(folder):
    pipeline(folder, b"{}")
    (folder / "m/unet/config.json").write_text("{")


@case("model: an empty folder", "quantize", "m")
def _(folder):
    (folder / "m").mkdir()


@case("model: only a pickle", "quantize", "m")
def _(folder):
    (folder / "m").mkdir()
    (folder / "m/pytorch_model.bin").write_bytes(b"PK\3\4")


@case("model: NaN in a weight", "quantize", "m")
def _(folder):
    (folder / "m").mkdir()
    weight = gaussian(1, 4, 64)
    weight[2, 7] = float("nan")
    write_safetensors(folder / "m/model.safetensors", {"x": weight})


@case("model: an FP8 scale of another shape", "quantize", "m")
def _(folder):
    (folder / "m").mkdir()
    header = {"x.weight": {"dtype": "F8_E4M3", "shape": [4, 64], "data_offsets": [0, 256]},
              "x.weight_scale": {"dtype": "F32", "shape": [3], "data_offsets": [256, 268]}}
    (folder / "m/model.safetensors").write_bytes(image(header, b"\x38" * 256 + b"\0\0\x80\x3f" * 3))


@case("model: folders in a circle", "quantize", "m")
def _(folder):
    plain(folder, "config.json", b"{}")
    (folder / "m/more").mkdir()
    (folder / "m/more/again").symlink_to("..")


# ---------------------------------------------------------------- the native format

W = {"code": "affine", "bits": 4, "group_size": 32, "params": "F16", "dtype": "BF16",
     "shape": [4, 40], "method": "ptq", "cosine": 0.99, "sqnr_db": 22.5}
PARTS = {"w.aq_codes": ["I32", [4, 5]], "w.aq_params": ["F16", [4, 2, 2]], "b": ["F32", [2]]}
SIZES = {"I32": 4, "F16": 2, "F32": 4, "U8": 1, "I8": 1, "I16": 2, "U32": 4, "BF16": 2}


def native(folder, ours, parts=None):
    header, offset = {}, 0
    if ours is not None:
        ours = ours if isinstance(ours, str) else json.dumps(ours)
        header["__metadata__"] = {"arrowquant": ours}
    for name, (dtype, shape) in (parts or PARTS).items():
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    (folder / "m.safetensors").write_bytes(image(header, b"\0" * offset))


def entry(**more):
    return {"version": 1, "tensors": {"w": {k: v for k, v in {**W, **more}.items() if v != "-"}}}


GOOD = {"version": 1, "tensors": {"w": W}, "crc32": {"b": "%08x" % zlib.crc32(bytes(8))}}
cases("native", {
    "empty": "", "not JSON": "{", "a list": [], "a number": 1, "no version": {"tensors": {}},
    "version 0": {**GOOD, "version": 0}, "version from the future": {**GOOD, "version": 2},
    "version is text": {**GOOD, "version": "1"}, "version -1": {**GOOD, "version": -1},
    "version twice": '{"version":1,"version":1,"tensors":{}}',
    "no tensors": {"version": 1}, "tensors is a list": {"version": 1, "tensors": []},
    "a tensor is a list": {"version": 1, "tensors": {"w": []}},
    "a tensor twice": '{"version":1,"tensors":{"w":%s,"w":%s}}' % (json.dumps(W), json.dumps(W)),
    "a member twice": '{"version":1,"tensors":{"w":{"bits":4,"bits":4}}}',
    "unknown code": entry(code="lattice"), "trellis without states": entry(code="trellis"),
    "a trellis of 512 states": entry(code="trellis", states=512),
    "rotation is text": entry(code="trellis", states=256, rotation="1"), "code is a number": entry(code=1), "no code": entry(code="-"),
    "3 bits": entry(bits=3), "0 bits": entry(bits=0), "2^32+4 bits": entry(bits=2**32 + 4),
    "bits is text": entry(bits="4"), "no bits": entry(bits="-"), "8 bits of 4": entry(bits=8),
    "group_size 48": entry(group_size=48), "group_size 0": entry(group_size=0),
    "group_size 2^63": entry(group_size=2**63), "group_size 1e9": entry(group_size=1000000000),
    "group_size 64 of 32": entry(group_size=64), "no group_size": entry(group_size="-"),
    "unknown params": entry(params="BF16"), "F32 params of F16": entry(params="F32"),
    "Q8 without row params": entry(params="Q8"), "no params": entry(params="-"),
    "unknown dtype": entry(dtype="F4"), "integer dtype": entry(dtype="I32"), "no dtype": entry(dtype="-"),
    "shape of another size": entry(shape=[4, 72]), "more rows": entry(shape=[5, 40]),
    "no shape": entry(shape="-"), "shape is text": entry(shape="4x40"),
    "shape that overflows": entry(shape=[4, 2**40, 2**40]), "negative shape": entry(shape=[-4, 40]),
    "huge rows": entry(shape=[2**63, 40]), "an empty shape": entry(shape=[]),
    "symmetric of affine": entry(code="symmetric"),
    "a tensor that is not there": {"version": 1, "tensors": {"w": W, "v": W}},
    "a NUL in a name": {"version": 1, "tensors": {"w\0": W}},
    "crc32 is a list": {**GOOD, "crc32": []}, "crc32 is a number": {**GOOD, "crc32": {"b": 5}},
    "crc32 of 7 digits": {**GOOD, "crc32": {"b": "0000000"}},
    "crc32 in capitals": {**GOOD, "crc32": {"b": "ABCDEF00"}},
    "parts that are not listed": {"version": 1, "tensors": {}},
}, native)
cases("native parts", {
    "no codes": {k: v for k, v in PARTS.items() if k != "w.aq_codes"},
    "no params": {k: v for k, v in PARTS.items() if k != "w.aq_params"},
    "codes as U32": {**PARTS, "w.aq_codes": ["U32", [4, 5]]},
    "codes in one row": {**PARTS, "w.aq_codes": ["I32", [20]]},
    "codes of one word less": {**PARTS, "w.aq_codes": ["I32", [4, 4]]},
    "params as BF16": {**PARTS, "w.aq_params": ["BF16", [4, 2, 2]]},
    "params of one group": {**PARTS, "w.aq_params": ["F16", [4, 1, 2]]},
    "params without min": {**PARTS, "w.aq_params": ["F16", [4, 2, 1]]},
    "a kept tensor of the same name": {**PARTS, "w": ["F32", [4, 40]]},
}, lambda folder, parts: native(folder, GOOD, parts))
case("native: a wrong checksum", "inspect --verify")(lambda folder: native(
    folder, {**GOOD, "crc32": {"b": "12345678"}}))
case("native: a checksum of what is not there", "inspect --verify")(lambda folder: native(
    folder, {**GOOD, "crc32": {"c": "00000000"}}))
case("native: dequantize what is not quantized", "dequantize")(lambda folder: native(folder, None))
case("native: quantize it again", "quantize")(lambda folder: native(folder, GOOD))


# ---------------------------------------------------------------- tests

# The reference package does not know these rules; docs/FORMAT.md lists them.
STRICTER = {"safetensors: a name twice", "safetensors: a NUL in a name", "safetensors: a complex dtype"}


def refuse(aq, folder, name):
    """The message with the folder's path replaced."""
    function, command, path = CASES[name]
    function(folder)
    before = sorted(os.listdir(folder))
    words = [*command.split(), folder / path]
    if command in ("quantize", "dequantize"):
        words += [folder / "out", "--quiet"]
    done = run(aq, *words)
    if done.returncode != 1:
        return f"exit status {done.returncode}"
    text = bad(aq, *words)
    assert sorted(os.listdir(folder)) == before, name
    lines = [line for line in text.splitlines() if line.startswith("aq: ")]
    return lines[-1][4:].replace(str(folder), "PATH")


@pytest.fixture(scope="module")
def messages(aq, tmp_path_factory):
    found = {}
    for number, name in enumerate(CASES):
        folder = tmp_path_factory.mktemp("hostile")
        found[name] = refuse(aq, folder, name)
    return found


def test_refused_with_these_messages(messages, record_property):
    lines = [f"{name} -> {message}" for name, message in messages.items()]
    if os.environ.get("AQ_UPDATE_GOLDEN"):
        GOLDEN.write_text("\n".join(lines) + "\n")
    assert GOLDEN.read_text().splitlines() == lines
    assert len(lines) >= 60 and not [line for line in lines if "exit status" in line]
    record_property("figure", f"{len(lines)} hostile models refused")


def test_each_message_names_the_file(messages):
    for name, message in messages.items():
        assert "PATH/m" in message, (name, message)


def test_what_the_reference_refuses(tmp_path, record_property):
    """All safetensors cases are refused by the reference package too, but for the stricter rules."""
    count = 0
    for number, (name, (function, _, path)) in enumerate(CASES.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        if not name.startswith("safetensors") or "a pipe" in name:
            continue
        function(folder)
        try:
            with safe_open(folder / path, "numpy") as opened:
                opened.keys()
            refused = False
        except (SafetensorError, OSError, OverflowError):
            refused = True
        assert refused == (name not in STRICTER), name
        count += 1
    record_property("figure", f"{count} hostile files: {count - len(STRICTER)} refused by the reference package too, "
                              f"{len(STRICTER)} by our stricter rules")


def test_the_good_ones_are_good(aq, tmp_path):
    """What the cases are made from is accepted: their flaw is the only one."""
    native(tmp_path, GOOD)
    good(aq, "inspect", tmp_path / "m.safetensors", "--verify")
    (tmp_path / "m.safetensors").write_bytes(image({"a": A}, b"ab"))
    good(aq, "inspect", tmp_path / "m.safetensors")
    shards(tmp_path, {"metadata": {}, "weight_map": MAP})
    good(aq, "quantize", tmp_path / "m", tmp_path / "out", "--quiet")
    (tmp_path / "p").mkdir()
    pipeline(tmp_path / "p", b"{}")
    good(aq, "quantize", tmp_path / "p/m", tmp_path / "p/out", "--quiet")


# ---------------------------------------------------------------- sizes

def limited(megabytes, *words):
    """A run within that much address space, and its processor time."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = run("sh", "-c", f'ulimit -v {megabytes}000; "$0" "$@" | tail -c 200', *words)
    return done, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


SMALLEST = b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
LARGE = {  # headers near the limit of 100 MB, of the smallest things that a reader has to remember
    "125,000 tensors": lambda: b",".join(SMALLEST % i for i in range(125_000)).join([b"{", b"}"]),
    "1,000,000 tensors": lambda: b",".join(SMALLEST % i for i in range(1_000_000)).join([b"{", b"}"]),
    "a shape of 48,000,000": lambda: b'{"a":{"dtype":"U8","data_offsets":[0,0],"shape":['
                                     + b"1," * 48_000_000 + b"0]}}",
    "1,000,000 metadata": lambda: b'{"__metadata__":{' + b",".join(
        b'"%x":""' % i for i in range(1_000_000)) + b"}}",
}


def test_large_headers(tool, tmp_path, record_property):
    """Memory is bounded by the header's size, and time is linear in it."""
    reader, seconds = tool("safetensors"), {}
    for name, header in LARGE.items():
        header = header()
        assert len(header) < 100_000_000
        path = tmp_path / "m.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        done, seconds[name] = limited(1500, reader, path)
        assert done.returncode == 0 and done.stdout.endswith("}\n"), (name, done.stderr)
        assert '"error"' not in done.stdout, (name, done.stdout)
    path.unlink()
    small, large = seconds["125,000 tensors"], seconds["1,000,000 tensors"]
    assert large < 20 * small + 0.5  # 8 × when linear, 64 × when quadratic
    record_property("figure", "headers up to 98 MB within 1.5 GB of address space; "
                    + ", ".join(f"{name}: {time:.2f} s" for name, time in seconds.items()))


def test_sizes_that_lie_allocate_nothing(aq, tmp_path):
    """A header size below the limit, but far beyond the file."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", 99_999_999) + b"{}" + b" " * 100)
    done, _ = limited(60, aq, "inspect", path)
    assert "memory" not in done.stderr and str(path) in done.stderr
