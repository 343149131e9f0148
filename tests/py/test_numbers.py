"""Doubles as text and back, against Python's repr and float."""
import math
import random
import re
import struct
import subprocess

import pytest


def bits_of(value):
    return struct.unpack("<Q", struct.pack("<d", value))[0]


def double_of(bits):
    return struct.unpack("<d", struct.pack("<Q", bits))[0]


def ask(program, lines):
    done = subprocess.run([str(program)], input="\n".join(lines) + "\n", text=True,
                          capture_output=True, check=True)
    answers = done.stdout.split("\n")
    assert len(answers) == len(lines) + 1
    return answers[:-1]


def hard_bits():
    """Powers of two and ten, their neighbours, subnormals, integers, short decimals, ties."""
    values = {0, 1, 2, 3, (1 << 52) - 1, 1 << 52, (1 << 52) + 1, 0x7FEFFFFFFFFFFFFF}
    for exponent in range(2047):
        for fraction in (0, 1, 2, (1 << 52) - 1, (1 << 52) - 2, 1 << 51):
            values.add(exponent << 52 | fraction)
    for power in range(-324, 309):
        near = bits_of(float(f"1e{power}"))
        values.update(near + step for step in range(-3, 4) if near + step >= 0)
    for i in range(3000):
        values.update(map(bits_of, (float(i), i / 10, i / 1000, i * 1e15, i * 0.1, i / 3)))
    for shift in range(52):
        values.add(1 << shift)
    values.update(bits_of(float(2**53 + i)) for i in range(-20, 20))
    # 9007199254740993 · 2^k and the like: decimal digits at a tie
    values.update(bits_of(float(5**i)) for i in range(60))
    values.update(map(bits_of, (9.5e-5, 0.0001, 9.999999999999999e-05, 1e16, 9999999999999998.0,
                                5e-324, 2.2250738585072011e-308, 1.7976931348623157e308, 2e-44,
                                9e22, 8.41e21, 9.5e21, 2.0**-44, 4.35, 0.3)))
    return sorted(values)


@pytest.fixture(scope="module")
def patterns():
    source = random.Random(20240)
    return hard_bits() + [source.getrandbits(64) for _ in range(200_000)]


def test_format_is_repr(tool, patterns):
    program = tool("numbers")
    patterns = patterns + [b ^ 1 << 63 for b in patterns[:5000]]
    answers = ask(program, [f"f {b:016x}" for b in patterns])
    wrong = [(hex(b), a, repr(double_of(b))) for b, a in zip(patterns, answers)
             if a != repr(double_of(b))]
    assert not wrong, f"{len(wrong)} of {len(patterns)}, such as {wrong[:5]}"


def test_parse_reads_repr(tool, patterns):
    program = tool("numbers")
    finite = [b for b in patterns if math.isfinite(double_of(b))]
    answers = ask(program, [f"p {double_of(b)!r}" for b in finite])
    wrong = [(hex(b), a) for b, a in zip(finite, answers) if a != f"{b:016x}"]
    assert not wrong, f"{len(wrong)} of {len(finite)}, such as {wrong[:5]}"


def exact(numerator, power):
    """numerator · 2^power, all decimal digits."""
    if power >= 0:
        return str(numerator << power)
    digits = str(numerator * 5**-power).rjust(-power + 1, "0")
    return f"{digits[:power]}.{digits[power:]}"


def decimals():
    """Ties between doubles, a digit below and above them, many digits, strange exponents."""
    source = random.Random(7)
    texts = ["0", "-0", "+0", "00012", "0.0", "0e5", "0e99999999999999999999", "1e400", "-1e400",
             "1e-400", "1e99999999999999999999", "1e-99999999999999999999", "1E5", "1e+5", "1e-05",
             "123456789012345678901234567890", "0." + "0" * 1000 + "1e1001", "1" + "0" * 2000,
             "1" + "0" * 2000 + "e-2000", "9" * 5000 + "e-5000", "0" * 3000 + "7", "2.5e-324",
             "2.4703282292062327e-324", "2.4703282292062328e-324", "1.7976931348623158e308",
             "1.7976931348623159e308", "179769313486231580793" + "0" * 288, "4.9e-324", "1e309",
             "9007199254740993", "9007199254740992.99999999999999999999999999999",
             "9007199254740993.00000000000000000000000000001", "1e-323", "3e-324", "1e23", "8.5e22"]
    for _ in range(4000):
        exponent = source.choice((0, 0, 1, 2, 1023, 1046, 2046, source.randrange(2047)))
        fraction = source.choice((source.getrandbits(52), 0, (1 << 52) - 1, source.getrandbits(8)))
        mantissa = fraction | (1 << 52 if exponent else 0)
        tie = exact(2 * mantissa + 1, max(exponent, 1) - 1076)
        point = "" if "." in tie else "."
        texts += [tie, tie + point + "0" * source.randrange(1, 900) + "1"]
        if tie[-1] in "123456789":
            texts.append(tie[:-1] + chr(ord(tie[-1]) - 1) + point + "9" * source.randrange(1, 30))
    for _ in range(30000):
        whole = "".join(source.choices("0123456789", k=source.randrange(1, 30)))
        rest = "".join(source.choices("0123456789", k=source.randrange(0, 40)))
        power = source.choice(("", f"e{source.randrange(-360, 340)}", f"E+{source.randrange(99)}"))
        texts.append(source.choice(("", "-", "+")) + whole + ("." + rest if rest else "") + power)
    return texts


def test_parse_rounds_correctly(tool):
    texts = decimals()
    answers = ask(tool("numbers"), [f"p {text}" for text in texts])
    wrong = [(text[:60], a, f"{bits_of(float(text)):016x}") for text, a in zip(texts, answers)
             if a != f"{bits_of(float(text)):016x}"]
    assert not wrong, f"{len(wrong)} of {len(texts)}, such as {wrong[:5]}"


def test_parse_refuses_what_is_no_number(tool):
    grammar = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
    source = random.Random(9)
    texts = ["", "+", "-", ".5", "5.", "1e", "1e+", "1 ", " 1", "1,5", "0x10", "inf", "nan", "1_0",
             "1..2", "1e5.0", "--1", "+-1", "1e--5", "1.e5", "infinity", "1f", "1e5e5"]
    texts += ["".join(source.choices("0159.eE+-", k=source.randrange(1, 7))) for _ in range(5000)]
    answers = ask(tool("numbers"), [f"p {text}" for text in texts])
    for text, answer in zip(texts, answers):
        want = f"{bits_of(float(text)):016x}" if grammar.fullmatch(text) else "refused"
        assert answer == want, text
