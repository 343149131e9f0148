"""The YAML reader against PyYAML: what we accept must mean what yaml.safe_load says, and what
PyYAML accepts must be accepted, unless the refusal says which unsupported thing it met."""
import collections
import datetime
import json
import random
import struct
import subprocess

import pytest
import yaml

# Every reason why a text that PyYAML accepts may be refused; the words are those of the messages.
REFUSALS = {
    "anchor": "an anchor, which",
    "alias": "an alias, which",
    "tag": "a tag, which",
    "block scalar": "a block scalar, which",
    "complex key": "a complex key, which",
    "empty key": "an empty key",
    "merge key": "a merge key, which",
    "timestamp": "a timestamp, which",
    "directive": "a directive, which",
    "duplicate key": "a second key ",
    "several lines": "several lines",
    "text at a marker": "on the line of a document marker",
    "depth": "more than 64 levels",
    "large integer": "beyond 64 bits",
    "long number": "a number of more than 400 characters",
    "base 60": "a number with too many ':' parts",
    "lone surrogate": "an escape that is no character",
    "line separator or BOM": "a control character",
    "UTF-16": "not valid UTF-8",
    # the first line of a text over several lines, refused for itself
    "reserved": "a lone '='",
    "no digits": "a number without digits",
}

ACCEPTED = r"""
a: 1
%a: b
%  a:  1  \n  b: 2
%a: 1 # comment
%a: x#y
%a:#y
%# only a comment
%
%   \n\n
%a:\n- 1\n- 2
%a:\n  - 1\n  - 2
%- - a\n  - b\n- c
%- a: 1\n  b: 2\n- c: 3
%-   a: 1\n    b: 2
%- - - a
%-\n- a
%-\n  - a
%-\n\n\n  a
%a:\n  b:\n    c: 1\n  d: 2\ne: 3
%a:\n\n  # c\n  b: 1\n# d\n  c: 2
%a:\nb:\n
%a: [1, 2, 3]
%a: [1,2,3,]
%a: [ ]
%a: {}
%a: {b: 1, c: [d, {e: f}]}
%a: {b: , c: , d}
%a: {b, c: 1}
%a: [b: 1, c]
%a: [b: , c: ]
%[a: {b: c}]
%["a": 1, 'b':2]
%{"a":1,'b':2}
%{a:1}
%{a: 1\n,b: 2\n}
%a: [1,\n2,\n  3 # three\n]\nb: 4
%a: {b: 1,\n  c: 2}\nd: 3
%- [a,\nb]
%[a#b, c #d\n]
%[-a, -, --, -1]
%{-: a}
%-a
%- -a
%--: 1
%? a
%?a: b
%:a: b
%:: a
%a:b: c
%a : b
%a :b
%a: b:c
%a: b, c
%a: b]
%a: http://x.y/z?q=1
%a: 'it''s'
%a: ''
%a: ""
%a: ''''
%a: "\"q\" \\ \/ \n \t \x41 \u00e9 \U0001F600 \0 \a\b\e\f\v\N\_\L\P\ "
%a: "a\	b"
%a: "tab	inside"
%a: 'tab	inside'
%'a': 1
%"a b" : 1
%'a' : 'b'
%"a"#c
%a: "b"#c
%[a]#c
%{"a":#c\n b}
%---\na: 1
%---\n
%--- # c\na: 1
%---\n- 1
%a: 1\n...
%a: 1\n...\n# c\n...\n
%---\n...\n
%---a
% ---
%- ---
%a: ---
%a: ...
%é: ü
%- é: 1\n  b: 2
%yes
%[yes, Yes, YES, no, No, NO, true, True, TRUE, false, False, FALSE, on, On, ON, off, Off, OFF]
%[y, n, Y, N, yEs, tRUE, oN, oFF]
%[~, null, Null, NULL, nULL]
%[0, 1, -1, +1, 00, 010, 0_7, 08, 09, 0o7, -0, +0, 1_000, 1_, _1, 0_, 0__]
%[0x1F, 0xff, -0x1, 0x_f, 0X1, 0b101, -0b1_0, 0b2, 0xg]
%[1:30, 190:20:30, -1:30, 1:60, 0:30, 1:3, 1_0:30, 1:30_]
%[1.5, 1., .5, -.5, +.5, +1.5, 1_0.5, 1_.5, ._5, .5_, 1.5_, 1._, -1.5, 0.0, -0.0]
%[1e3, 1.0e3, 1.0e+3, 1.5E-3, 1.e+2, .5e+1, 1.0e+400, 1.0e-400, 1e+3, 1.5e+, 1.5e]
%[1:30.5, -1:30.5, 0:30.5, 1:60.5, 1:2:3., 1:30.5e+1, 190:20:30.15]
%[.inf, .Inf, .INF, -.inf, +.inf, .iNF, .nan, .NaN, .NAN, -.nan, .Nan, inf, nan]
%[18446744073709551615, -18446744073709551615]
%[=a, <<a, a=, =]
%=: a
%[1.7976931348623157e+308, 4.9e-324, 2.2250738585072011e-308, 123456789012345678901.5]
%[2024-1-1, 2024-01-1, 20240101, 2024-01-01x, 2024-13, 12:30:45]
%{5: a, 2: b, yes: c, ~: d, 1.5: e}
%{true: a, 0: b, '1': c}
%{.nan: a, .inf: b}
%{1: a, '1': b, 1.5: c}
%[a b c,  d  e ]
%a:   b   c   
%[a ,b]
%{a  : b}
%a: b\r\nc: d\r\n
%a: b\rc: d\r
%a: 50%
%a: b@c
%a: b`c
%a: b!c
%a: b&c*d
%a: b|c>d
%- >-\n
%[a, [b, [c, [d]]]]
%a: {b: {c: {d: e}}}
%a: [[]]
%a: [{}]
%- []
%- {}
%-  # c\n  a
%a: # c\n  b
%a: # c\n- b
%"a":\n  b
%  - a\n  - b
%   a
%"x"
%'x'
%[]
%{}
%12
%a: 'x' # c
%a: "x" # c
%a: [x] # c
%a: {x: y} # c
%a: "#"
%a: '#'
%a: b # c: d
%"a: b": c
%'a # b': c
%[a, b]  
%a: 1\n\n\n\nb: 2
%a:\n - 1\n - 2\nb:\n - 3
%a:\n  - b: 1\n    c: 2\n  - d: 3
%a:\n- b: 1\n  c: 2\n- d: 3\ne: f
%- a:\n  - b\n  c: d
%- a:\n    - b\n  c: d
%- - a: 1\n    b: 2\n  - c
%a: !b
%'<<': a
%"=": a
%['<<', '=', '~', 'yes', '1', '']
""".strip("\n")

REFUSED = r"""
a: -
%a: 1\na: 2
%a: b: c
%a: - b
%a:\n\tb: 1
%a:\tb
%a: b\t
%\ta: 1
%- a\n\t- b
%a: b\n  c
%a\nb
%a: "b\n  c"
%a: 'b\n  c'
%a: "b\\\n  c"
%[a\n b]
%a: &x b
%a: *x
%a: !!int 1
%a: !x b
%&x a: 1
%a: |\n  b
%a: >\n  b
%[|a]
%[>a]
%? a\n: b
%[? a : b]
%[?a]
%[a?b]
%: a
%{: a}
%<<: {a: 1}
%[<<]
%[=]
%2024-01-31
%2024-01-31T10:00:00Z
%2024-01-31 10:00:00
%2024-1-1 1:00:00.5 +1
%2024-99-99
%2024-1-1t1:00:00 -10:30
%[a, b
%{a: b
%[a}
%{a]
%a: [b] c
%a: [b]: c
%[a]: b
%{a: b}: c
%{[a]: b}
%{{a: b}: c}
%[[a]: b]
%[[a]]: b
%{[a]}
%[,]
%{,}
%[a,,b]
%[a b: c: d]
%{a: b: c}
%["a"\n: b]
%{"a"\n: b}
%{a\n: b}
%{a: b\n c: d}
%["a" "b"]
%"a" "b"
%"a" b
%"a"b: c
%"a":b
%a: "b" c
%"abc
%'abc
%'''
%"\"
%"\q"
%"\x4"
%"\u12"
%"\ud83d\ude00"
%"\U00110000"
%--- a
%--- [a]
%--- a: b
%--- !!map
%---\n---\n
%a: 1\n---\nb: 2
%a\n...\nb
%...
%... # c
%a: 1\n... b
%%YAML 1.1\n---\na
%%foo
%a: 1\n%b
%[\n---\n]
%[\n- a]
%[- a]
%{- a}
%a: @b
%a: `b
%a: %b
%a: ,b
%a: ]b
%a: }b
%@a
%`a
%,a
%]
%}
%a: 1\n b: 2
%  a: 1\nb: 2
%a:\n    b: 1\n  c: 2
%a:\n  - b\n - c
%a:\n  - b\n  c: d
%- a\nb: c
%- a\nb
%a: 1\n- b
%- a: 1\n - b
%- a: 1\n  - b
%a:\nb
%a:\n"b"
%a:\n[b]
%a: 1\nb
%a: 1\n"b"
%a: 1\n[b]
%a: 1\n[b]: c
%- a: 1\n  [b]
%"a"\n: b
%a\n: b
%a: b\n  : c
%a: b\n  - c
%- - a\n - b
%{1: a, 0x1: b}
%{1: a, 1.0: b}
%{true: a, 1: b}
%{a: 1, 'a': 2}
%{~: 1, null: 2}
%{.nan: 1, .NaN: 2}
%a: {b: 1, b: 2}
%18446744073709551616
%-18446744073709551616
%0xFFFFFFFFFFFFFFFFF
%0b_
%0x_
%99999999999999999999:30
%a: b #c\n  d
%a: 'b'\n  c
%a: [b]\n  c
%a\tb
%a: 'x'\t
%[a\t]
%\u2028a: 1
%a: \u0085b
%a: \ufeffb
%a: \x07
%a: \x7f
%a: "\x00"
%a: \ufffe
""".strip("\n")


def cases(text):
    """One case a line, without its leading %; \\n, \\r, \\t outside quotes are escapes."""
    result = []
    for line in text.split("\n"):
        line = line[1:] if line.startswith("%") else line
        if line.startswith(('"\\', 'a: "\\"')):  # escapes that are for YAML
            result.append(line)
            continue
        for name, value in (("\\n", "\n"), ("\\r", "\r"), ("\\t", "\t"), ("\\\\", "\\"),
                            ("\\x07", "\x07"), ("\\x7f", "\x7f"), ("\\x00", "\x00"),
                            ("\\u2028", "\u2028"), ("\\u0085", "\x85"), ("\\ufeff", "\ufeff"),
                            ("\\ufffe", "\ufffe")):
            line = line.replace(name, value)
        result.append(line)
    return result


class Unsupported(Exception):
    pass


class UniqueLoader(yaml.SafeLoader):
    """safe_load that also sees duplicate keys, which PyYAML lets pass."""


class Duplicate(yaml.YAMLError):
    pass


def unique_mapping(loader, node, deep=False):
    loader.flatten_mapping(node)
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    try:
        nans = [key for key in keys if key != key]
        if len(set(keys)) != len(keys) or len(nans) > 1:
            raise Duplicate("duplicate key")
    except TypeError:
        pass  # PyYAML says it
    return loader.construct_mapping(node, deep)


UniqueLoader.add_constructor("tag:yaml.org,2002:map",
                             lambda loader, node: unique_mapping(loader, node, True))


def tagged(value):
    """A Python value in the form that tool_yaml prints."""
    if value is None:
        return ["null"]
    if isinstance(value, bool):
        return ["bool", value]
    if isinstance(value, int):
        return ["int", str(value)]
    if isinstance(value, float):
        return ["float", "nan" if value != value else struct.pack(">d", value).hex()]
    if isinstance(value, str):
        return ["str", value.encode("utf-8", "surrogatepass").hex()]
    if isinstance(value, list):
        return ["list", [tagged(item) for item in value]]
    if isinstance(value, dict):
        return ["map", [[tagged(key), tagged(item)] for key, item in value.items()]]
    raise Unsupported(type(value))


def without_nan_bits(value):
    """Every NaN is the same; PyYAML's sign of it depends on the machine."""
    if value[0] == "float":
        number = struct.unpack(">d", bytes.fromhex(value[1]))[0]
        return ["float", "nan"] if number != number else value
    if value[0] == "list":
        return ["list", [without_nan_bits(item) for item in value[1]]]
    if value[0] == "map":
        return ["map", [[without_nan_bits(key), without_nan_bits(item)] for key, item in value[1]]]
    return value


def pyyaml(data):
    """(value in our form, None) or (None, reason)"""
    try:
        return tagged(yaml.load(data, Loader=UniqueLoader)), None
    except (yaml.YAMLError, ValueError, Unsupported, IndexError, KeyError, TypeError,
            RecursionError, OverflowError, AttributeError) as error:
        return None, error


def as_bytes(text):
    return text if isinstance(text, bytes) else text.encode("utf-8")


@pytest.fixture(scope="session")
def read(tool):
    program = tool("yaml")

    def run(texts):
        batch = b"".join(b"%d\n%s" % (len(data), data) for data in map(as_bytes, texts))
        done = subprocess.run([program, "batch"], input=batch, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        assert len(lines) == len(texts)
        return [json.loads(line) for line in lines]
    return run


def compare(read, texts, record_property):
    """Every case: equal, refused by both, or refused by us alone for a reason that is allowed."""
    count = collections.Counter()
    for text, ours in zip(texts, read(texts)):
        theirs, error = pyyaml(as_bytes(text))
        if "ok" in ours:
            assert error is None, f"PyYAML refuses {text!r}: {error}; we read {ours['ok']}"
            assert without_nan_bits(ours["ok"]) == theirs, text
            count["equal"] += 1
            continue
        assert ours["error"].startswith("in:"), ours
        if error is not None:
            count["refused by both"] += 1
            continue
        reasons = [name for name, words in REFUSALS.items() if words in ours["error"]]
        assert reasons, f"PyYAML reads {text!r} as {theirs}; we refuse it: {ours['error']}"
        count[f"refused by us: {reasons[0]}"] += 1
    for name, value in sorted(count.items()):
        record_property(name, value)
    print(f"\n{len(texts)} texts: " + ", ".join(f"{n} {v}" for n, v in sorted(count.items())))
    return count


def test_hand_written_accepted(read, record_property):
    texts = cases(ACCEPTED)
    known = {"? a", "- >-\n", "a: !b", "[=a, <<a, a=, =]"}
    count = compare(read, texts, record_property)
    for text, ours in zip(texts, read(texts)):
        assert ("ok" in ours) == (text not in known), (text, ours)
    assert count["equal"] >= 150


def test_hand_written_refused(read, record_property):
    texts = cases(REFUSED)
    for text, ours in zip(texts, read(texts)):
        assert "error" in ours, (text, ours)
    compare(read, texts, record_property)


@pytest.mark.parametrize("text, place", [
    ("a: 1\nb: &x 2\n", "2:4"), ("a: 1\na: 2\n", "2:1"), ("é: [ü, *x]", "1:8"),
    ("a:\n\tb: 1", "2:1"), ("a: b\n  c: d\n", "2:3"), ("a: |\n  x", "1:4"),
    ("\ufeffa: @", "1:4"), ("a: 1\r\nb: \x07", "2:4"), (b"a: 1\nb: \xff", "2:4"),
    ("a: [1, 2", "1:4"), ("a: 'x", "1:4"), ("a: \"x\\q\"", "1:6"), ("a: 1\n---\nb: 1", "2:1"),
    ("a: {b: 1, b: 2}", "1:11"), ("a:\n  - 1\n  - 2024-01-01\n", "3:5"),
    ("%YAML 1.1\n---\n", "1:1"),
    ("a: x\nb: 'y' z", "2:8"), ("1: a\n0x1: b", "2:1"), ("[" * 65 + "]" * 65, "1:65"),
])
def test_line_and_column(read, text, place):
    assert read([text])[0]["error"].startswith(f"in:{place}: ")


def test_encodings(read, record_property):
    texts = ["\ufeffa: 1".encode(), "\ufeff".encode(), "\ufeff# c\n---\na: 1".encode(), b"\xff",
             b"a: \xc3", b"a: \xed\xa0\x80", b"a: \xc0\xaf", b"a: \xf4\x90\x80\x80", b"\x00",
             "a: 1".encode("utf-16"), "a: \U0001F600".encode(), b"a: \xef\xbf\xbd"]
    compare(read, texts, record_property)


def test_limits(read, record_property):
    """Depth, long keys, long numbers, and 1 MB of the same character in linear time."""
    texts = ["[" * n + "]" * n for n in (1, 63, 64, 65, 90)]
    texts += ["- " * n + "a" for n in (63, 64, 65, 90)]
    texts += ["".join(" " * i + "a:\n" for i in range(n)) for n in (63, 64, 65)]
    texts += ["k" * n + tail for n in (1020, 1023, 1024, 1025, 2000)
              for tail in (": 1", " : 1", "")]
    texts += ["{" + "k" * n + tail for n in (1022, 1023, 1024, 1025) for tail in (": 1}", "}")]
    texts += ["é" * n + ": 1" for n in (1024, 1025)]
    texts += [f'"{"k" * n}": 1' for n in (1022, 1023)]
    texts += ["1" * n + ".5" for n in (100, 398, 399, 500)]
    texts += ["1:" * n + "1.5" for n in (1, 8, 9, 20)] + ["1:" * n + "1" for n in (1, 9, 10, 20)]
    compare(read, texts, record_property)
    size = 1 << 20
    for text in ("a" * size, "[" * size, "- " * size, "[a," * size, "[" + "a," * size + "]",
                 "'" * size, '"' + "\\n" * size + '"', "a: b\n" * (size // 5), "\n" * size,
                 "#" * size, "# \n" * size, "a b " * (size // 4), "- a\n" * (size // 4), "1" * size,
                 "{" + ",".join(f"k{i}" for i in range(size // 8)) + "}",
                 "".join(f"{'k' * 60}{i}: {i}\n" for i in range(size // 64))):
        read([text])


WORDS = ["a", "b", "key", "yes", "No", "null", "~", "1", "-1", "010", "0x1f", "1_000", "1:30",
         "1.5", ".5", "1e3", "1.0e+3", ".inf", ".nan", "2024-01-31", "<<", "=", "é", "x y", "a:b",
         "a#b", "#", "-", "- ", "-\n", ": ", ":", ":\n", ", ", ",", "[", "]", "{", "}", "[]", "{}",
         "\n", "\n  ", "\n    ", "\n- ", "\n  - ", " ", "  ", " # c\n", "'q'", '"d"', "'", '"',
         "''", '"\\n"', "&x", "*x", "!t", "|", ">", "?", "? ", "%", "@", "`", "\t", "---", "...",
         "\n---\n", "\n...\n", "\r\n", "key: ", "b: ", "c: 1\n", "- a\n", "k:\n", "k:\n  ", "\r"]


def soup(random_source, size):
    return "".join(random_source.choice(WORDS) for _ in range(size))


LINES = ["a: 1", "b:", "c: [x, y]", "d: {e: f}", "- g", "-", "- h: 1", "- - i", "'j': k", "l",
         "[m]", "# n", "", "o: 'p' # q", "r: s t", "---", "...", "u: [v,", "w]", "x: {y: z,", "}",
         "-   aa: bb", "? cc", ": dd", "ee: - ff", "gg: hh: ii", "jj:  ", "kk : ll", "a: 2"]


def lines(random_source, size):
    """Lines with indentation that is mostly sensible: the block structure, hard."""
    depth, out = 0, []
    for _ in range(size):
        depth = max(0, depth + random_source.choice([-2, -1, 0, 0, 0, 1, 2, 2]))
        out.append(" " * depth + random_source.choice(LINES))
    return "\n".join(out)


def mutated(random_source, text):
    """One or two characters removed, doubled, replaced or put in."""
    for _ in range(random_source.randint(1, 2)):
        at = random_source.randrange(len(text) + 1)
        text = text[:at] + random_source.choice(
            ["", " ", "  ", "\n", ":", "- ", "#", ",", "'", '"', "[", "}", "\t", "0", "_", "."]
        ) + text[at + random_source.randint(0, 2):]
    return text


TEXTS = ["", "a", "yes", "null", "~", "1", "1.5", "0x1", "1e3", "a b", " a", "a ", "a: b", "a #b",
         "#a", "- a", "-", "a\nb", "\n", "é", "\U0001F600", "it's", '"', "\\", "\t", "\x07", "=",
         "<<", "2024-01-31", "x" * 90, "[a]", "{a}", "%a", "@a", "&a", "*a", "!a", "|", ">", "?",
         "transformer.blocks.*.attn", "\x85", "\u2028", "\ufeff", "...", "---", "a,b", ":"]


def value(random_source, depth):
    kind = random_source.randrange(10 if depth else 7)
    if kind < 3:
        return random_source.choice(TEXTS)
    if kind == 3:
        return random_source.choice([None, True, False])
    if kind == 4:
        return random_source.choice([0, 1, -1, 255, 10 ** 18, -(2 ** 63), 2 ** 64 - 1,
                                     random_source.randint(-10 ** 6, 10 ** 6)])
    if kind == 5:
        return random_source.choice([0.0, -0.0, 1.5, 1e-5, 1e16, 1e300, float("inf"), 5e-324,
                                     random_source.uniform(-1, 1), random_source.gauss(0, 1e9)])
    if kind == 6:
        return random_source.choice([[], {}])
    items = [value(random_source, depth - 1) for _ in range(random_source.randint(1, 4))]
    if kind == 7:
        return items
    keys = [random_source.choice(TEXTS + [1, 2, True, None, 2.5]) for _ in items]
    return dict(zip(keys, items))


def dumped(random_source):
    return yaml.dump(value(random_source, 4), Dumper=yaml.SafeDumper,
                     default_flow_style=random_source.choice([None, True, False]),
                     default_style=random_source.choice([None, None, None, "'", '"']),
                     indent=random_source.choice([2, 3, 4, 6]), sort_keys=False,
                     width=random_source.choice([20, 80, 100000]),
                     allow_unicode=random_source.random() < 0.5,
                     explicit_start=random_source.random() < 0.2,
                     explicit_end=random_source.random() < 0.1,
                     line_break=random_source.choice([None, "\r\n", "\r"]))


def test_dumped_values(read, record_property):
    source = random.Random(1)
    texts = [dumped(source) for _ in range(2500)]
    assert compare(read, texts, record_property)["equal"] > 1200


def test_dumped_values_on_single_lines(read):
    """What PyYAML writes without anything unsupported in it is accepted, all of it."""
    source, texts = random.Random(2), []
    while len(texts) < 1500:
        data = value(source, 4)
        text = yaml.dump(data, Dumper=yaml.SafeDumper, width=10 ** 9, sort_keys=False,
                         default_flow_style=source.choice([None, True, False]))
        plain = all(word not in text for word in ("&id", "? ", "!!", "\n\n", "|", ">", "\x85"))
        if plain and (isinstance(data, (dict, list)) and data):
            texts.append(text)
    refused = [(text, ours["error"]) for text, ours in zip(texts, read(texts))
               if "error" in ours and "control character" not in ours["error"]]
    assert not refused, refused[0]


def test_token_soup(read, record_property):
    source = random.Random(3)
    texts = [soup(source, source.randint(1, 14)) for _ in range(8000)]
    assert compare(read, texts, record_property)["equal"] > 200


def test_line_soup(read, record_property):
    source = random.Random(4)
    texts = [lines(source, source.randint(1, 9)) for _ in range(6000)]
    assert compare(read, texts, record_property)["equal"] > 200


def test_mutations(read, record_property):
    source = random.Random(5)
    good = [text for text in cases(ACCEPTED) if text]
    texts = [mutated(source, source.choice(good) if source.random() < 0.6 else dumped(source)[:300])
             for _ in range(6000)]
    assert compare(read, texts, record_property)["equal"] > 1000


def test_scalars(read, record_property):
    """Numbers, dates and words, close to the borders of the resolver's patterns."""
    source, alphabet = random.Random(6), "0012345679__..::--++eExXbBoOaAfFTtZ infINFnaNyYsStrue~<="
    texts = [f"[{''.join(source.choice(alphabet) for _ in range(source.randint(1, 9)))}]"
             for _ in range(6000)]
    parts = ["-", "+", "", "0", "1", "19", "1_0", "08", ".", "5", ".5", ":30", ":5", ":60", "e+5",
             "e5", "E-3", "_", "0x", "0b", "2024", "-01", "-1", "T10", " 10", ":00", "Z", " +1",
             "30"]
    texts += [f"- {''.join(source.choice(parts) for _ in range(source.randint(1, 6)))}"
              for _ in range(6000)]
    assert compare(read, texts, record_property)["equal"] > 4000


def test_dates_are_what_pyyaml_calls_dates(read):
    for text in ("2024-01-31", "2024-1-1 10:00:00", "2024-01-31T10:00:00.5Z"):
        assert isinstance(yaml.safe_load(text), datetime.date)
        assert "a timestamp" in read([text])[0]["error"]
