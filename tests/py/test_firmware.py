"""aq export-c, and the whole bundled model from its header: on this machine and on a Cortex-M4 that
qemu emulates."""
import re
import subprocess

import pytest

import dit
from conftest import REPO, WARNINGS, call, need

FOLDER = REPO / "examples/firmware"
ARM = ["arm-none-eabi-gcc", "-std=c99", "-Os", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard",
       "-mfpu=fpv4-sp-d16", "-ffunction-sections", "-fdata-sections", "-Wl,--gc-sections", "-T",
       FOLDER / "mps2.ld", "-nostartfiles", "--specs=rdimon.specs", FOLDER / "start.c"]


@pytest.fixture(scope="module", params=[("4", []), ("2", ["--parameter-bits", "8"]),
                                        ("2", ["--method", "trellis", "--trellis-states", "256", "--fast"])],
                ids=["int4", "int2", "trellis"])
def exported(request, aq, tmp_path_factory):
    """The firmware with a model.h beside it that export-c wrote."""
    bits, flags = request.param
    top = tmp_path_factory.mktemp("firmware")
    call([aq, "quantize", dit.DIGITS, top / "model", "--bits", bits, "--quantize-sensitive",
          "--min-accuracy", "0", "--quiet", *flags])
    call([aq, "export-c", top / "model", top / "model.h", "--prefix", "digits", "--quiet"])
    return top


def lines_of(output):
    """[what does not depend on the machine], [the pass, 64 numbers]"""
    same = [line for line in output.splitlines() if line.startswith("layer")]
    numbers = [int(word) for line in output.splitlines() if re.fullmatch(r"(-?\d+ ?)+", line)
               for word in line.split()]
    assert len(same) == 1 and len(numbers) == 64, output
    return same, numbers


def host_output(top):
    call(["gcc", "-std=c99", "-O1", *WARNINGS, "-I", top, FOLDER / "firmware.c", "-o", top / "host",
          "-lm"])
    return call([top / "host"])


def test_cortex_m4_and_this_machine_agree(exported, record_property):
    need("arm-none-eabi-gcc")
    need("qemu-system-arm")
    program = exported / "firmware.elf"
    call([*ARM, "-I", exported, FOLDER / "firmware.c", "-o", program, "-lm"])
    text, data, bss = (int(word) for word in
                       call(["arm-none-eabi-size", program]).splitlines()[1].split()[:3])
    output = call(["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting", "-icount",
                   "shift=0", "-kernel", program])
    same, numbers = lines_of(output)
    host_same, host_numbers = lines_of(host_output(exported))
    assert same == host_same  # INT8 products: the same bits
    assert max(abs(a - b) for a, b in zip(numbers, host_numbers)) <= 300  # 3e-3: steps of INT8
    assert max(map(abs, numbers)) > 50000
    ticks = [int(word) for word in re.findall(r"ticks of the \w+: (\d+)", output)]
    figure = (f"Cortex-M4, whole DiT: flash {text + data} bytes, RAM {data + bss}, layer "
              f"{ticks[0] * 40 / 1e6:.1f}, pass {ticks[1] * 40 / 1e6:.0f} million instructions")
    print(figure)
    record_property("figure", figure)
    assert text + data < 1 << 20 and data + bss < 200000


def refused(aq, *words):
    done = subprocess.run([str(word) for word in (aq, "export-c", *words)], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode in (1, 2)
    return done.stderr


def test_export_of_chosen_layers(aq, tmp_path):
    out = tmp_path / "part.h"
    call([aq, "export-c", dit.DIGITS, out, "--only", "proj_out_?.weight", "--only",
          "*.0.attn1.to_q.weight"])
    text = out.read_text()
    assert "#define model_layer_count 3u" in text
    assert re.findall(r'\{ "([^"]+)", (\d+)u, (\d+)u, false', text) == [
        ("proj_out_1.weight", "256", "128"), ("proj_out_2.weight", "4", "128"),
        ("transformer_blocks.0.attn1.to_q.weight", "128", "128")]
    # the bytes are those of the file
    data = re.search(r"model_data_1\[1024\] = \{([^}]*)\}", text).group(1)
    stored = dit.load(dit.DIGITS / "transformer/diffusion_pytorch_model.safetensors")
    weight = (stored["proj_out_2.weight"].view("<u4") >> 16).astype("<u2").tobytes()
    assert bytes(int(word) for word in data.replace("\n", "").split(",") if word) == weight
    assert "exists already" in refused(aq, dit.DIGITS, out)
    assert out.read_text() == text
    call([aq, "export-c", dit.DIGITS, out, "--only", "proj_out_1*", "--overwrite", "--quiet"])
    assert "layer_count 1u" in out.read_text()


def test_export_refuses(aq, tmp_path):
    assert "not a C name" in refused(aq, dit.DIGITS, tmp_path / "a.h", "--prefix", "7up")
    assert "no layer" in refused(aq, dit.DIGITS, tmp_path / "a.h", "--only", "nothing*")
    assert "cannot be written" in refused(aq, dit.DIGITS, tmp_path / "none/a.h")
    assert "absent" in refused(aq, tmp_path / "absent", tmp_path / "a.h")
    assert not list(tmp_path.glob("*.h"))
