"""Small models for the tool's tests, and what it takes to run the tool."""
import json
import os
import pathlib
import struct
import subprocess

import numpy as np

NUMPY_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1",
                "BOOL": "?"}


def environment(**more):
    """The caller's environment without anything that steers the library."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("ARROW_QUANT_")}
    return {**clean, **more}


def run(aq, *words, env=None, **options):
    return subprocess.run([str(aq), *(str(word) for word in words)], capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, timeout=120, env=environment(**(env or {})),
                          **options)


def good(aq, *words, **options):
    """Runs a command that must succeed; its standard output."""
    done = run(aq, *words, **options)
    assert done.returncode == 0, f"{words}: status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def good_json(aq, *words, **options):
    return json.loads(good(aq, *words, "--json", **options))


def bad(aq, *words, status=1, **options):
    """Runs a command that must fail; its standard error, which has a message and a hint."""
    done = run(aq, *words, **options)
    assert done.returncode == status, f"{words}: status {done.returncode}\n{done.stderr}"
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith(("aq: ", "hint: "))]
    assert [line.split(":")[0] for line in lines[-2:]] == ["aq", "hint"], done.stderr
    return done.stderr


def to_bfloat16(array):
    """The bytes of BF16, rounded to nearest even."""
    bits = np.ascontiguousarray(array, "<f4").view("<u4").astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()


def write_safetensors(path, tensors, metadata=None):
    """tensors: {name: array} or {name: (dtype, array)}; BF16 only in the second form."""
    header, blobs, offset = {}, [], 0
    if metadata:
        header["__metadata__"] = metadata
    for name, value in tensors.items():
        dtype, array = value if isinstance(value, tuple) else (None, np.asarray(value))
        if dtype is None:
            dtype = next(key for key, name_ in NUMPY_DTYPES.items()
                         if np.dtype(name_) == array.dtype)
        blob = (to_bfloat16(array) if dtype == "BF16"
                else np.ascontiguousarray(array, NUMPY_DTYPES[dtype]).tobytes())
        header[name] = {"dtype": dtype, "shape": list(array.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for blob in blobs:
            out.write(blob)


def header_of(path):
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return json.loads(file.read(size))


def gaussian(seed, *shape, scale=0.05, dtype="float32"):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(dtype)


def write_json(path, value):
    pathlib.Path(path).write_text(json.dumps(value, indent=2))


def plain_folder(folder, tensors, config=None, name="model.safetensors"):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config or {"architectures": ["LlamaForCausalLM"]})
    write_safetensors(folder / name, tensors)
    return folder


def llm_tensors(blocks=2, width=128):
    """The names and shapes of a small language model."""
    tensors = {"model.embed_tokens.weight": gaussian(1, 96, width, dtype="float16"),
               "model.norm.weight": np.ones(width, "float16"),
               "lm_head.weight": gaussian(2, 96, width, dtype="float16")}
    for b in range(blocks):
        part = f"model.layers.{b}."
        for i, layer in enumerate(("q_proj", "k_proj", "v_proj", "o_proj")):
            tensors[f"{part}self_attn.{layer}.weight"] = gaussian(10 * b + i, width, width,
                                                                  dtype="float16")
        tensors[part + "mlp.up_proj.weight"] = gaussian(10 * b + 5, 4 * width, width,
                                                        dtype="float16")
        tensors[part + "mlp.down_proj.weight"] = gaussian(10 * b + 6, width, 4 * width,
                                                          dtype="float16")
        tensors[part + "input_layernorm.weight"] = np.ones(width, "float16")
    return tensors


def sharded_folder(folder, tensors, shards=3):
    """A folder whose tensors are spread over several files with an index."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"architectures": ["LlamaForCausalLM"], "hidden_size": 128})
    names, weight_map = list(tensors), {}
    for s in range(shards):
        file = f"model-{s + 1:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, {name: tensors[name] for name in names[s::shards]},
                          {"format": "pt"})
        weight_map.update({name: file for name in names[s::shards]})
    total = sum(array.nbytes for array in tensors.values())
    write_json(folder / "model.safetensors.index.json",
               {"metadata": {"total_size": total}, "weight_map": weight_map})
    return folder


def files_of(folder):
    """{relative path: bytes} of every file."""
    folder = pathlib.Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}
