"""The safetensors reader against the reference package: what both take they read alike, what the
reference refuses we refuse, and what we refuse beyond that is on the list of docs/FORMAT.md."""
import json
import random
import struct
import subprocess

import numpy as np
import pytest
from safetensors import SafetensorError, TensorSpec, safe_open, serialize

SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "I16": 2,
         "I32": 4, "I64": 8, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1}
# Names of dtypes as `serialize` takes them.
WRITER_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
                 "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "I8": "int8",
                 "I16": "int16", "I32": "int32", "I64": "int64", "U8": "uint8", "U16": "uint16",
                 "U32": "uint32", "U64": "uint64", "BOOL": "bool"}
NAMES = ["a", "a.b", "a_b", "A_b", "a.B", "", " ", "ä", "模型.层", "😀", "e\u0301", "\u00e9",
         "x/y", "..",
         "quote\"back\\slash", "tab\tnew\nline", "\x7f", "__metadata", "x" * 3000, "\u2028"]


def image(header, data=b"", size=None):
    if isinstance(header, str):
        header = header.encode()
    return struct.pack("<Q", len(header) if size is None else size) + header + data


@pytest.fixture(scope="module")
def ours(tool):
    """ours(images): what our reader says about each."""
    program = tool("safetensors")

    def read(images):
        stdin = b"".join(struct.pack("<I", len(one)) + one for one in images)
        done = subprocess.run([str(program), "-"], input=stdin, capture_output=True, timeout=250)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.decode().split("\n")[:-1]
        assert len(lines) == len(images)
        return [json.loads(line) for line in lines]
    return read


@pytest.fixture
def reference(tmp_path):
    """reference(image): {name: (dtype, shape, bytes)} and metadata, or the error."""
    path = tmp_path / "reference.safetensors"

    def read(one):
        path.write_bytes(one)
        start = 8 + struct.unpack("<Q", one[:8])[0] if len(one) >= 8 else 0
        try:
            with safe_open(path, "numpy") as opened:
                metadata = opened.metadata()
                found = {}
                for name in opened.offset_keys():
                    view = opened.get_slice(name)
                    found[name] = (view.get_dtype(), view.get_shape())
                return found, metadata, start
        except (SafetensorError, OSError, OverflowError) as error:
            return error
    return read


def same(ours, theirs, one):
    """Both took the image: the same tensors, in an order that their data allows."""
    found, metadata, start = theirs
    assert "error" not in ours, ours
    assert {t["name"]: (t["dtype"], t["shape"]) for t in ours["tensors"]} == found
    assert len(ours["tensors"]) == len(found)
    cursor = start
    for tensor in ours["tensors"]:
        assert tensor["offset"] == cursor
        count = 1
        for extent in tensor["shape"]:
            count *= extent
        assert tensor["bytes"] == count * SIZES[tensor["dtype"]]
        cursor += tensor["bytes"]
    assert cursor == len(one)
    assert (json.loads(ours["metadata"]) if ours["metadata"] else None) == metadata


def write(tensors, metadata=None):
    """The reference writer's file of {name: (dtype, shape, bytes)}."""
    held = {name: np.frombuffer(data + b"\0", np.uint8) for name, (_, _, data) in tensors.items()}
    return bytes(serialize({name: TensorSpec(dtype=WRITER_DTYPES[dtype], shape=shape,
                                             data_ptr=held[name].ctypes.data, data_len=len(data))
                            for name, (dtype, shape, data) in tensors.items()}, metadata))


def random_file(rng):
    tensors = {}
    for name in rng.sample(NAMES, rng.randrange(len(NAMES))):
        dtype = rng.choice(list(SIZES))
        shape = [rng.choice([0, 1, 2, 3, 7]) for _ in range(rng.randrange(6))]
        count = SIZES[dtype]
        for extent in shape:
            count *= extent
        tensors[name] = (dtype, shape, rng.randbytes(count))
    metadata = None
    if rng.random() < 0.6:
        metadata = {rng.choice(NAMES): rng.choice(NAMES) for _ in range(rng.randrange(4))}
    return write(tensors, metadata or None)  # it writes {} wrongly


def test_reads_what_the_reference_writes(ours, reference):
    rng = random.Random(1)
    images = [random_file(rng) for _ in range(300)]
    for one, result in zip(images, ours(images)):
        theirs = reference(one)
        assert not isinstance(theirs, Exception), theirs
        same(result, theirs, one)


def test_every_dtype_and_name(ours, reference):
    for dtype in SIZES:
        one = write({name: (dtype, [2], b"\1" * 2 * SIZES[dtype]) for name in NAMES})
        same(ours([one])[0], reference(one), one)


E = '"dtype":"U8","shape":[2],"data_offsets":[0,2]'
D = b"ab"


def entry(dtype='"U8"', shape="[2]", offsets="[0,2]", more=""):
    return '{"a":{"dtype":%s,"shape":%s,"data_offsets":%s%s}}' % (dtype, shape, offsets, more)


# Refused by both.
BAD = {
    "empty file": b"", "seven bytes": b"\0" * 7, "no header": b"\0" * 8,
    "empty header": image("", D), "size 2^64-1": image("{}", size=2**64 - 1),
    "size 2^63": image("{}", size=2**63), "size past the end": image("{}", size=3),
    "size over the limit": image("{}", size=100_000_001),
    "array": image("[]"), "null": image("null"), "string": image('"a"'), "number": image("1"),
    "text after": image("{} x"), "zero byte after": image("{}\0"), "two objects": image("{}{}"),
    "byte order mark": image(b"\xef\xbb\xbf{}"), "not closed": image('{"a":{%s}' % E, D),
    "trailing comma": image('{"a":{%s},}' % E, D), "no quotes": image("{a:{%s}}" % E, D),
    "single quotes": image("{'a':{%s}}" % E, D), "comment": image("{/**/}"),
    "no colon": image('{"a"{%s}}' % E, D), "no comma": image('{"a":{%s} "b":{%s}}' % (E, E), D),
    "control character": image('{"a\nb":{%s}}' % E, D), "bad escape": image('{"\\x":{%s}}' % E, D),
    "short escape": image('{"\\u12":{%s}}' % E, D),
    "lone surrogate": image('{"\\ud800":{%s}}' % E, D),
    "low surrogate": image('{"\\udc00":{%s}}' % E, D),
    "not UTF-8": image(b'{"\xff":{%s}}' % E.encode(), D),
    "overlong": image(b'{"\xc0\x80":{%s}}' % E.encode(), D),
    "UTF-8 surrogate": image(b'{"\xed\xa0\x80":{%s}}' % E.encode(), D),
    "beyond Unicode": image(b'{"\xf4\x90\x80\x80":{%s}}' % E.encode(), D),
    "UTF-16": image('{"a":{%s}}'.encode("utf-16") , D),
    "entry is null": image('{"a":null}'),
    "entry is empty": image('{"a":{}}'), "entry is a string": image('{"a":"U8"}'),
    "no dtype": image('{"a":{"shape":[2],"data_offsets":[0,2]}}', D),
    "no shape": image('{"a":{"dtype":"U8","data_offsets":[0,2]}}', D),
    "no offsets": image('{"a":{"dtype":"U8","shape":[2]}}', D),
    "dtype twice": image(entry(more=',"dtype":"U8"'), D),
    "shape twice": image(entry(more=',"shape":[2]'), D),
    "offsets twice": image(entry(more=',"data_offsets":[0,2]'), D),
    "unknown dtype": image(entry('"U4"'), D), "dtype in small letters": image(entry('"u8"'), D),
    "dtype is null": image(entry("null"), D), "dtype is a number": image(entry("0"), D),
    "dtype is empty": image(entry('""'), D),
    "shape is null": image(entry(shape="null"), D), "shape is a number": image(entry(shape="2"), D),
    "shape is an object": image(entry(shape="{}"), D),
    "shape of strings": image(entry(shape='["2"]'), D),
    "shape of floats": image(entry(shape="[2.0]"), D),
    "shape with exponent": image(entry(shape="[2e0]"), D),
    "negative shape": image(entry(shape="[-2]"), D), "leading zero": image(entry(shape="[02]"), D),
    "plus sign": image(entry(shape="[+2]"), D), "hexadecimal": image(entry(shape="[0x2]"), D),
    "shape over 64 bits": image(entry(shape="[0,18446744073709551616]", offsets="[0,0]")),
    "shape product overflows": image(entry(shape="[9223372036854775808,16,0]", offsets="[0,0]")),
    "size overflows": image(entry('"F32"', "[4611686018427387904]", "[0,0]")),
    "size overflows to fit": image(entry('"F64"', "[2305843009213693952]", "[0,0]")),
    "rank 0 without data": image(entry(shape="[]", offsets="[0,0]")),
    "too many bytes": image(entry(offsets="[0,3]"), b"abc"),
    "too few bytes": image(entry(offsets="[0,1]"), b"a"),
    "one offset": image(entry(offsets="[2]"), D),
    "three offsets": image(entry(offsets="[0,2,2]"), D),
    "no offset": image(entry(offsets="[]"), D), "offsets are null": image(entry(offsets="null"), D),
    "offset is a float": image(entry(offsets="[0,2.0]"), D),
    "offset -0": image(entry(offsets="[-0,2]"), D),
    "offset is a string": image(entry(offsets='["0","2"]'), D),
    "negative offset": image(entry(offsets="[-2,0]"), D),
    "offset over 64 bits": image(entry(offsets="[0,18446744073709551618]"), D),
    "offsets wrap": image(entry(offsets="[18446744073709551615,1]"), D),
    "end before begin": image(entry(shape="[0]", offsets="[2,0]"), D),
    "hole at the start": image(entry(offsets="[1,3]"), b"abc"),
    "hole": image('{"a":{%s},"b":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}}' % E, b"abcd"),
    "overlap": image('{"a":{%s},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}' % E, b"abc"),
    "same place": image('{"a":{%s},"b":{%s}}' % (E, E), D),
    "data is cut short": image('{"a":{%s}}' % E, b"a"),
    "data goes on": image('{"a":{%s}}' % E, b"abc"),
    "data without tensors": image("{}", b"a"),
    "metadata twice": image('{"__metadata__":{},"__metadata__":{}}'),
    "metadata is an array": image('{"__metadata__":[]}'),
    "metadata is a string": image('{"__metadata__":""}'),
    "metadata with a number": image('{"__metadata__":{"a":1}}'),
    "metadata with null": image('{"__metadata__":{"a":null}}'),
    "metadata with an object": image('{"__metadata__":{"a":{}}}'),
    "metadata is a tensor": image('{"__metadata__":{%s}}' % E, D),
    "number out of range": image(entry(more=',"x":1e999'), D),
    "surrogate in an unknown member": image(entry(more=',"x":"\\ud800"'), D),
    "deep unknown member": image(entry(more=',"x":' + "[" * 200 + "]" * 200), D),
    "bad number in an unknown member": image(entry(more=',"x":1.'), D),
}

# Taken by the reference, refused by us: the list of docs/FORMAT.md.
STRICTER = {
    "a name twice": image('{"a":{%s},"a":{%s}}' % (E, E), D),
    "an empty tensor twice": image('{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
                                   '"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "NUL in a name": image('{"a\\u0000b":{%s}}' % E, D),
    "a metadata key twice": image('{"__metadata__":{"a":"1","a":"2"}}'),
    "an entry as an array": image('{"a":["U8",[2],[0,2]]}', D),
    "dtype as an object": image(entry('{"U8":null}'), D),
    "nested 64 deep": image(entry(more=',"x":' + "[" * 70 + "]" * 70), D),
    "C64": image(entry('"C64"', "[1]", "[0,8]"), b"a" * 8),
    "F4": image(entry('"F4"', "[4]", "[0,2]"), D),
    "F6_E2M3": image(entry('"F6_E2M3"', "[4]", "[0,3]"), b"abc"),
    "F6_E3M2": image(entry('"F6_E3M2"', "[4]", "[0,3]"), b"abc"),
    "F8_E8M0": image(entry('"F8_E8M0"'), D),
    "F8_E4M3FNUZ": image(entry('"F8_E4M3FNUZ"'), D),
    "F8_E5M2FNUZ": image(entry('"F8_E5M2FNUZ"'), D),
}

GOOD = {
    "no tensors": image("{}"), "null metadata": image('{"__metadata__":null}'),
    "empty metadata": image('{"__metadata__":{}}'), "spaces before": image(" \n\t\r{}"),
    "spaces behind": image("{}   \n"), "not a multiple of 8": image('{"a":{%s}} ' % E, D),
    "unknown members": image(entry(more=',"x":1,"x":[{"y":null}],"":-1e-5'), D),
    "escaped keys": image(
        '{"a":{"\\u0064type":"\\u00558","sh\\u0061pe":[2],"data_offsets":[0,2]}}', D),
    "escaped metadata": image('{"\\u005f_metadata__":{"\\u0061":"\\ud83d\\ude00"}}'),
    "any order": image(
        '{"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]},"a":{%s}}' % E, b"abc"),
    "not aligned": image(
        '{"a":{%s},"b":{"dtype":"F64","shape":[],"data_offsets":[2,10]}}' % E, b"a" * 10),
    "empty ones between": image('{"a":{%s},"b":{"dtype":"F32","shape":[0],"data_offsets":[2,2]},'
                                '"c":{"dtype":"F32","shape":[7,0],"data_offsets":[2,2]},'
                                '"d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' % E, D),
    "rank 12": image(entry(shape="[1,1,1,2,1,1,1,1,1,1,1,1]"), D),
    "an early 0 stops overflow": image(entry(shape="[0,9223372036854775808,16]", offsets="[0,0]")),
    "DEL in a name": image('{"\x7f":{%s}}' % E, D),
}


def test_bad_files(ours, reference, record_property):
    assert len(BAD) >= 60
    for (what, one), result in zip(BAD.items(), ours(list(BAD.values()))):
        assert isinstance(reference(one), Exception), f"the reference takes: {what}"
        assert result.get("error") in ("corrupt", "unsupported"), what
        assert "image" in result["message"]
    record_property("figure", f"{len(BAD)} bad headers that the reference refuses: all refused")


def test_stricter_than_the_reference(ours, reference):
    for (what, one), result in zip(STRICTER.items(), ours(list(STRICTER.values()))):
        assert not isinstance(reference(one), Exception), f"the reference refuses: {what}"
        assert result.get("error") in ("corrupt", "unsupported"), what
        assert (result["error"] == "unsupported") == (what[0] in "CF" and what[1].isdigit()), what


def test_good_files(ours, reference):
    for (what, one), result in zip(GOOD.items(), ours(list(GOOD.values()))):
        theirs = reference(one)
        assert not isinstance(theirs, Exception), f"the reference refuses: {what}: {theirs}"
        same(result, theirs, one)


PIECES = [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"0", b"1", b"-", b".", b"e",
          b" ", b"\0",
          b"null", b"true", b'"a"', b'"dtype"', b'"U8"', b'"F16"', b'"shape"', b'"data_offsets"',
          b"\\u0061", b"\xff", b"\xc3\xa4", b"18446744073709551616", b'"__metadata__":{},']


def mutate(rng, one):
    size = struct.unpack("<Q", one[:8])[0]
    header, data = bytearray(one[8:8 + size]), one[8 + size:]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(header) + 1)
        what = rng.randrange(5)
        if what == 0:
            del header[at:at + rng.randrange(1, 5)]
        elif what == 1:
            header[at:at] = rng.choice(PIECES)
        elif what == 2:
            header[at:at + 1] = rng.choice(PIECES)
        elif what == 3 and header:
            other = rng.randrange(len(header))
            header[at:at] = header[other:other + rng.randrange(1, 40)]
        elif header:
            header[at % len(header)] ^= 1 << rng.randrange(8)
    if rng.random() < 0.1:
        data = data[:-1] if rng.random() < 0.5 else data + b"x"
    return image(bytes(header), data)


def allowed(result, one):
    """The reference took it, we did not: is it one of the documented reasons?"""
    message = result["message"]
    return any(words in message for words in
               ("is there twice", "holds a NUL", "holds the key", "is not read", "64 levels",
                "dtype should be a string, found an object",
                "its entry should be an object, found an array"))


def test_mutated_headers(ours, reference, record_property):
    rng = random.Random(2)
    seeds = [random_file(rng) for _ in range(40)] + list(GOOD.values())
    images = [mutate(rng, rng.choice(seeds)) for _ in range(6000)]
    taken = refused = stricter = 0
    for one, result in zip(images, ours(images)):
        theirs = reference(one)
        if isinstance(theirs, Exception):
            assert "error" in result, (one, theirs, result)
            refused += 1
        elif "error" in result:
            assert allowed(result, one), (one, result)
            stricter += 1
        else:
            same(result, theirs, one)
            taken += 1
    assert refused > 2000 and taken > 300, (taken, refused, stricter)
    record_property("figure", f"{len(images)} mutated headers: {refused} refused by both, {taken} read alike, "
                              f"{stricter} refused by our stricter rules, 0 taken that the reference refuses")


def test_a_file_over_4_gib(tool, tmp_path):
    """A sparse one: no bytes are written, but the offsets are beyond 32 bits."""
    path = tmp_path / "big.safetensors"
    half = 5 << 30
    header = json.dumps({
        "last": {"dtype": "F16", "shape": [3], "data_offsets": [half, half + 6]},
        "big": {"dtype": "F32", "shape": [5 << 10, 1 << 18], "data_offsets": [0, half]},
    }).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + half + 6)
    done = subprocess.run([str(tool("safetensors")), str(path)], capture_output=True, check=True)
    result = json.loads(done.stdout)
    assert [t["name"] for t in result["tensors"]] == ["big", "last"]
    assert result["tensors"][1]["offset"] == 8 + len(header) + half
    assert result["tensors"][0]["bytes"] == half
    with safe_open(path, "numpy") as opened:
        assert opened.get_slice("last").get_shape() == [3]
        assert np.array_equal(opened.get_tensor("last"), np.zeros(3, np.float16))
