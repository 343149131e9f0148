"""GGUF files made by hand, good ones and bad ones."""
import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q",
        I64: "q", F64: "d"}


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def value(kind, content):
    if kind == STRING:
        return text(content)
    if kind == ARRAY:
        element, items = content
        return struct.pack("<IQ", element, len(items)) + b"".join(value(element, i) for i in items)
    return struct.pack("<" + PACK[kind], content)


def pair(key, kind, content):
    return text(key) + struct.pack("<I", kind) + value(kind, content)


def tensor(name, shape, kind, offset=0):
    return (text(name) + struct.pack("<I", len(shape)) +
            b"".join(struct.pack("<Q", n) for n in reversed(shape)) +
            struct.pack("<IQ", kind, offset))


def image(pairs=(), tensors=(), data=b"", version=3, magic=b"GGUF", counts=None, alignment=32):
    counts = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


ARCH = pair("general.architecture", STRING, "flux")


def good_images():
    """Files that are read, as seeds for a fuzzer."""
    pairs = [ARCH, pair("n", U32, 7), pair("list", ARRAY, (STRING, ["a", "bc"])),
             pair("shape", ARRAY, (I32, [1, -2])), pair("yes", BOOL, 1), pair("pi", F64, 3.14)]
    return {
        "empty": image(),
        "pairs": image(pairs),
        "plain": image([ARCH], [tensor("x", [2, 3], 0), tensor("y", [4], 1, 32)], bytes(64)),
        "blocks": image([ARCH], [tensor("a", [2, 32], 8), tensor("b", [1, 256], 12, 96),
                                 tensor("c", [1, 256], 10, 256)],
                        bytes(range(68)) + bytes(28) + bytes(144 + 16) + bytes(96)),
        "q4": image([ARCH], [tensor("a", [1, 32], 2), tensor("b", [1, 32], 3, 32)], bytes(64)),
        "other": image([ARCH], [tensor("a", [1, 256], 14)], bytes(224)),
        "aligned": image([pair("general.alignment", U32, 64)], [tensor("x", [4], 0)], bytes(64),
                         alignment=64),
        "version2": image([ARCH], version=2),
        "five": image([], [tensor("v", [1, 1, 2, 2, 2], 0)], bytes(32)),
    }
