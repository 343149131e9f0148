"""The JSON reader against Python's: what is valid by RFC 8259 is accepted with the same meaning,
everything else is refused. Python is stricter here than by default: NaN, Infinity, lone surrogates
and duplicate keys count as errors."""
import json
import math
import random
import struct
import subprocess

VALID = r'''
null|true|false|0|-0|1|-1|10|1.5|-1.5e10|1E5|1e+5|1e-5|0.0|0e0|-0.0
1e400|-1e400|123456789012345678901
""|"a"|"\""|"\\"|"\/"|"\b\f\n\r\t"|"\u0000"|"\u00e9\u20AC"|"\ud83d\ude00"|"\uD83D\uDE00x"|"é€😀"
" "|[]|[ ]|[1]|[1,2]|[ 1 , 2 ]|[[]]|[[],[]]|[{}]|{}|{ }
{"a":1}|{ "a" : 1 , "b" : [ ] }|{"":""}|{"a":{"a":{"a":1}}}
 1 |	[]	|"\\u0041"|["\\",""]|{"\u0061":1,"b":2}|[null,true,false]|"\ud800\udc00"|"\udbff\udfff"
'''
INVALID = r'''
nul|True|nulll|NaN|Infinity|-Infinity|+1|01|-01|1.|.5|1e|1e+|1.e5|-|--1|0x10|1_000
1,|00|-a|1.5.5|1e5e5|0e
"|"a|'a'|"\x"|"\u12"|"\u123g"|"\ud800"|"\udc00"|"\ud800\ud800"|"\ud800x"|"\ud800\n"
"\"|"a"b|"	"|"\u+123"|"\U0041"
[|]|[1|[1,|[1,]|[,1]|[1 2]|[1,,2]|[}|{]|{|}|{"a"}|{"a":}|{"a" 1}|{"a":1,}|{,}
{a:1}|{'a':1}|{"a":1 "b":2}|{1:2}|{null:1}
{"a":1,"a":2}|{"a":1,"\u0061":2}|{"":1,"":2}|[{"x":[],"y":1,"x":1}]|[] []|1 1|{}x|//
/* */1|1//|[1]]|{"a":1}}|"a":1
[1;2]|{"a"=1}|(1)|undefined|[-]|[+1]|tru|"a\|truefalse|[1:2]|{"a":1:2}|{"a",1}|{:1}|{"a"::1}
'''


def strict(data):
    """The value, or None when the bytes are not acceptable."""
    def pairs(items):
        if len({key for key, _ in items}) != len(items):
            raise ValueError("duplicate")
        return tuple(items)

    def constant(name):
        raise ValueError(name)

    def whole(value):
        if isinstance(value, str):
            value.encode("utf-8")  # a lone surrogate raises
        elif isinstance(value, (list, tuple)):
            for item in value:
                whole(item)

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_int=float,
                           parse_constant=constant)
        whole(value)
        return (value,)
    except ValueError:
        return None


def same(a, b):
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def ask(program, documents):
    done = subprocess.run([str(program)], capture_output=True,
                          input=b"".join(b"%d\n%s" % (len(d), d) for d in documents))
    assert done.returncode == 0, f"exit status {done.returncode}: {done.stderr.decode()}"
    answers = done.stdout.split(b"\n")[:-1]
    assert len(answers) == len(documents)
    return [answer.decode("utf-8") for answer in answers]


def check(program, documents):
    """Compares, returns how many were accepted."""
    accepted = 0
    for document, answer in zip(documents, ask(program, documents)):
        want = strict(document)
        if want is None:
            assert answer.startswith("refused input: line "), (document, answer)
            continue
        assert answer.startswith("ok "), (document, answer)
        found = json.loads(answer[3:], object_pairs_hook=tuple, parse_int=float)
        assert same(found, want[0]), (document, answer)
        accepted += 1
    return accepted


def test_hand_made_cases(tool):
    split = lambda text: [case.encode() for line in text.strip("\n").split("\n")
                          for case in line.split("|")]
    valid, invalid = split(VALID), split(INVALID)
    invalid += [b"", b" ", b"\xef\xbb\xbf{}", b"\x00", b"1\x00", b'"\x00"', b'"\x1f"', b'"a\nb"',
                b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xe2\x82"',
                b'{"\xff":1}', b"\xff", b"\x0b1", b"\x0c1", b"\xc2\xa01", b"[1,\xe2\x80\xa82]",
                b"\xff\xfe[\x00]\x00", b"[\x00]"]
    valid += [b'"\x7f"', b"\r\n[\r\n1\r\n]\r\n", '"\u2028\u2029\ufeff\uffff"'.encode()]
    program = tool("json")
    assert check(program, valid) == len(valid)
    assert check(program, invalid) == 0


def random_value(source, depth):
    kind = source.randrange(10 if depth else 6)
    if kind == 0:
        return source.choice((None, True, False))
    if kind < 3:
        scale = 10.0 ** source.randrange(-320, 308)
        return source.choice((source.randrange(-1000, 1000), source.getrandbits(70),
                              source.uniform(-1, 1), source.uniform(-1, 1) * scale))
    if kind < 6:
        return random_text(source)
    count = source.choice((0, 1, 2, 3, 5, 20))
    if kind < 8:
        return [random_value(source, depth - 1) for _ in range(count)]
    return {random_text(source): random_value(source, depth - 1) for _ in range(count)}


def random_text(source):
    ranges = ((32, 127), (32, 127), (0, 32), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000),
              (0x10000, 0x110000))
    return "".join(chr(source.randrange(*source.choice(ranges)))
                   for _ in range(source.choice((0, 1, 3, 8))))


def random_document(source):
    text = json.dumps(random_value(source, source.randrange(5)),
                      ensure_ascii=source.random() < 0.5, indent=source.choice((None, None, 1)),
                      separators=source.choice((None, (",", ":"), (" ,\t", "\r\n: "))))
    return text.encode("utf-8")


def test_generated_documents(tool):
    source = random.Random(8259)
    documents = [random_document(source) for _ in range(3000)]
    assert check(tool("json"), documents) == len(documents)


def test_damaged_documents(tool):
    source = random.Random(1)
    alphabet = b'{}[],:"\\/0123456789.eE+-truefalsn u\t\n\x00\x1f\x80\xc3\xa9\xed\xff'
    documents = []
    for _ in range(20000):
        data = bytearray(random_document(source)[:300])
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            at = source.randrange(len(data) + 1)
            change = source.randrange(4)
            if change == 0:
                data[at:at + source.choice((1, 1, 5))] = b""
            elif change == 1:
                data[at:at] = bytes([source.choice(alphabet)])
            elif change == 2:
                data[at:at + 1] = bytes([source.choice(alphabet)])
            else:
                data = data[:at]
        documents.append(bytes(data))
    accepted = check(tool("json"), documents)
    assert 500 < accepted < 15000  # both kinds are there


def test_duplicates_among_many_keys(tool):
    source = random.Random(5)
    documents = []
    for count in (2, 15, 16, 17, 18, 40, 300):
        for _ in range(20):
            keys = [f"k{i}" for i in range(count)]
            source.shuffle(keys)
            documents.append("{%s}" % ",".join(f'"{key}":1' for key in keys))
            keys.insert(source.randrange(count), source.choice(keys))
            documents.append("{%s}" % ",".join(f'"{key}":1' for key in keys))
    assert check(tool("json"), [d.encode() for d in documents]) == len(documents) // 2


def test_place_of_errors(tool):
    cases = [(b"[1,\n 2,\n  x]", "line 3, column 3:"),
             (b'{"a":1,\r\n"b":2,\r\n "a":3}', "line 3, column 2:"),
             ('["é€😀" 1]'.encode(), "line 1, column 8:"), (b"", "line 1, column 1:")]
    for (_, place), answer in zip(cases, ask(tool("json"), [case for case, _ in cases])):
        assert place in answer, answer


def test_infinity_is_what_python_says(tool):
    answer, = ask(tool("json"), [b"[1e999,-1e999]"])
    assert json.loads(answer[3:]) == [math.inf, -math.inf]
