"""A decoder of `.dcz` files written from `docs/format.md` alone, in plain Python: it shares no line with deepcomp.

`decode` reads a whole file, and raises ValueError at whatever the text does not allow.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections import namedtuple
from collections.abc import Iterator
from typing import Any

# `data` holds the bits of the elements; `same_as` is the number of the tensor that an equal or tied one refers to.
Tensor = namedtuple("Tensor", "name role dtype shape data same_as tied")
File = namedtuple("File", "tensors metadata graph")
Part = namedtuple("Part", "form facts arrays tables")  # a table is (type, words)

NAMES = """float32 float16 bfloat16 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool float8_e4m3fn
float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu complex64 complex128"""
TYPES, ROLES = NAMES.split(), ["parameter", "buffer", "constant"]
WORD_BYTES = [4, 2, 2, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 1, 1, 1, 1, 1, 4, 8]
FLOATS = {0: (8, 23), 1: (5, 10), 2: (8, 7), 3: (11, 52)}  # bits of exponent and fraction
BOOL, ROTATED, WORDS = 12, {0, 1, 2, 3, 18, 19}, [1] * 18 + [2, 2]  # words of an element
RAW, CODEBOOK, MASK, ROWS, GRID = 1, 2, 3, 4, 5
TABLE_BYTES = [1, 2, 4, 8, 4, 1]
GAPS = {134, *range(100, 128), *range(154, 160), *range(171, 176), *range(187, 192), 206, 207, *range(229, 240)}
GAPS |= {*range(270, 288), *range(305, 312), *range(325, 336), *range(387, 400), *range(423, 432)}
OPERATIONS = {*range(461)} - GAPS
DICTIONARY = (
    b"num_batches_trackedrunning_varrunning_meanembeddings.position_embeddings.weighttoken_type_embeddingsencoder.la"
    b"yers.0.self_attn.in_proj_weightout_proj.biasattention.self.query.weightkey.value.output.dense.LayerNorm.weight"
    b"_ih_l0weight_hh_l0bias_ih_l0bias_hh_l0norm1.norm2.linear1.linear2.downsample.0.features.layer1.0.conv1.weightl"
    b'ayer2.0.bn1.biaslayer3.0.conv2.bn2.classifier.linear.conv3.conv2.conv1.{"recipe": "deep-compression", "seed": '
    b'0, "version": "0.1.0"}{"recipe": "lossless", "seed": 0, "version": '
    b'"0.1.0"}fc3.biasfc3.weightfc2.biasfc2.weightfc1.biasfc1.weight'
)


def need(true: object, message: str) -> None:
    if not true:
        raise ValueError(message)


def unfold(value: int) -> int:
    return -(value + 1 >> 1) if value & 1 else value >> 1


class Source:
    """Conventions: a place in some bytes, and what is read from there."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        need(count <= len(self.data) - self.at, "a length beyond what is there")
        self.at += count
        return self.data[self.at - count : self.at]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def end(self) -> None:
        need(self.at == len(self.data), "something follows")

    def number(self, size: int = 1) -> int:
        return int.from_bytes(self.take(size), "little")

    def varint(self) -> int:
        value, shift, byte = 0, 0, 128
        while byte & 128:
            byte = self.number()
            value, shift = value | (byte & 127) << shift, shift + 7
            need(value < 2**64 and (byte or shift == 7), "a varint too great or not in its shortest spelling")
        return value

    def signed(self) -> int:
        return unfold(self.varint())

    def text(self) -> str:
        return self.take(self.varint()).decode()

    def fields(self, widths: list[int]) -> list[int]:
        found, store, bits = [], 0, 0
        need(sum(widths) <= 8 * (len(self.data) - self.at), "fields beyond what is there")
        for width in widths:
            while bits < width:
                store, bits = store | self.number() << bits, bits + 8
            found.append(store & (1 << width) - 1)
            store, bits = store >> width, bits - width
        need(not store, "bits that must be zero")
        return found


def decode(data: bytes, max_bytes: int | None = None) -> File:
    """Sections 1, 2 (kinds of record) and 7: `max_bytes` bounds the dense bytes of all tensors."""
    need(len(data) >= 46 and data[:5] == b"\x93DCZ\x01", "not a file of version 1")
    length = int.from_bytes(data[-40:-36], "little")
    need(length <= min(len(data) - 46, 2**28), "the index is longer than the file or the limit")
    start = len(data) - 40 - length
    need(zlib.crc32(data[:6] + data[start:-4]) == int.from_bytes(data[-4:], "little"), "CRC-32 of the trailer")
    need(hashlib.sha256(data[:-36]).digest() == data[-36:-4], "SHA-256")
    limit = max(2**32, 2000 * len(data)) if max_bytes is None else max_bytes
    chunks, chunk, last, tensors, metadata, graph = Source(data[6:start]), 0, 1, [], {}, None
    try:
        records = index(Source(data[start:-40]))
        for kind, last, name, head, size in records:
            need(kind == 0 or not (name or size), "a graph or metadata with a name or a body")
            body = chunks.take(size)
            if kind == 0:
                tensors.append(tensor(name, Source(head), Source(body), tensors, limit))
                limit -= len(tensors[-1].data)
            elif kind == 1:
                graph = Graph(Source(head), sum(record[0] == 0 for record in records)).read()
            else:
                metadata = json.loads(head.decode(), parse_constant=lambda name: need(False, "no JSON"))
            if last and chunks.at > chunk:
                need(zlib.crc32(chunks.data[chunk : chunks.at]) == chunks.number(4), "CRC-32 of a chunk")
                chunk = chunks.at
    except (zlib.error, RecursionError) as error:
        raise ValueError(str(error)) from error
    chunks.end()
    need(last and isinstance(metadata, dict), "an open chunk at the end, or metadata that is no JSON object")
    return File(tensors, metadata, graph)


def index(source: Source) -> list[tuple[int, int, str, bytes, int]]:
    """Section 2: kind, last, name, head and length of the body of each record."""
    deflated = source.number()
    need(deflated < 2, "the index begins with 0 or 1")
    if deflated:
        length, inflater = source.varint(), zlib.decompressobj(-15, zdict=DICTIONARY)
        need(length <= 2**28, "an index above the limit")
        plain = inflater.decompress(source.rest(), length + 1)
        need(inflater.eof and not inflater.unused_data and len(plain) == length, "the deflate stream of the index")
        source = Source(plain)
    records, seen = [], set()
    for _ in range(source.varint()):
        kind, last = divmod(source.varint(), 2)
        name = source.text()
        need(kind <= 2 and len(name.encode()) <= 65536, "an unknown kind, or a name too long")
        need((kind, name) not in seen, "two records of a kind with one name")
        seen.add((kind, name))
        records.append((kind, last, name, source.take(source.varint()), source.varint()))
    source.end()
    return records


def tensor(name: str, head: Source, body: Source, earlier: list[Tensor], limit: int) -> Tensor:
    """Section 3, all but the parts."""
    kind, role = divmod(head.number(), 4)
    rank = head.varint()
    need(kind < len(TYPES) and role < len(ROLES) and rank <= 32, "an unknown type or role, or too many dimensions")
    shape = [head.varint() for _ in range(rank)]
    need(math.prod(shape) * WORD_BYTES[kind] * WORDS[kind] <= limit, "more dense bytes than allowed")
    form = head.number()
    if form in (126, 127):
        number = head.varint()
        need(number < len(earlier) and not body.data, "a reference to no earlier tensor, or with a body")
        named = earlier[number]
        need((named.dtype, named.shape) == (TYPES[kind], shape), "a reference to another type or shape")
        need(named.same_as is None, "a reference to a reference")
        found = Tensor(name, ROLES[role], TYPES[kind], shape, named.data, number, form == 127)
    else:
        words = tensor_words(parts(form, head, body, math.prod(shape), WORDS[kind]), kind, shape)
        need(kind != BOOL or max(words, default=0) <= 1, "a bool is 0 or 1")
        data = b"".join(word.to_bytes(WORD_BYTES[kind], "little") for word in words)
        found = Tensor(name, ROLES[role], TYPES[kind], shape, data, None, False)
    head.end()
    return found


def parts(form: int, head: Source, body: Source, elements: int, words: int) -> list[Part]:
    """Section 3, the parts: all that the head says of them first, then what the body holds."""
    told, symbols, size = [], elements, 0
    while len(told) < 3:
        counts = head.number()
        facts, arrays = [head.signed() for _ in range(counts & 7)], []
        for _ in range(counts >> 3 & 15):
            count = head.varint()
            need(count != symbols + 1, "a number of symbols that is spelled 0")
            symbols = count - 1 if count else symbols
            need(symbols <= elements * words, "more symbols than elements")
            arrays.append((head.varint(), symbols))
        tables = [(head.number(), head.varint()) for _ in range(counts >> 7)]
        need(all(kind < len(TABLE_BYTES) for kind, _ in tables), "an unknown type of table")
        told.append(Part(form & 127, facts, arrays, tables))
        size += sum(length for length, _ in arrays) + sum(TABLE_BYTES[kind] * count for kind, count in tables)
        if form < 128:
            break
        form = head.number()
    need(form < 128 and size == len(body.data), "too many parts, or a body of another length")
    found = []
    for part in told:
        arrays = [stream(Source(body.take(length)), symbols) for length, symbols in part.arrays]
        tables = [(kind, [body.number(TABLE_BYTES[kind]) for _ in range(count)]) for kind, count in part.tables]
        found.append(Part(part.form, part.facts, arrays, tables))
    return found


def tensor_words(parts: list[Part], kind: int, shape: list[int]) -> list[int]:
    """Sections 4, 4.3 and 4.4: the words of a whole tensor, whatever its parts."""
    (form, facts, arrays, tables), *inner = parts
    each, elements, counts = WORDS[kind], math.prod(shape), (len(facts), len(arrays), len(tables))
    if form == ROWS:
        need(counts == (1, 1, 0) and inner and inner[0].form != ROWS and shape, "rows")
        need(0 <= facts[0] <= shape[0] == len(arrays[0]), "rows: numbers of slices")
        need(max(arrays[0], default=-1) < facts[0], "rows: no such slice")
        slices, size = tensor_words(inner, kind, [facts[0], *shape[1:]]), math.prod(shape[1:]) * each
        return [word for row in arrays[0] for word in slices[row * size : (row + 1) * size]]
    if form == MASK:
        need(counts == (0, 1, 0) and len(inner) == 1 and inner[0].form not in (MASK, ROWS), "mask")
        positions, last = [], -1
        for gap in arrays[0]:
            last += 1 + gap
            positions.append(last)
        need(last < elements, "mask: a position beyond the tensor")
        words, values = [0] * (elements * each), form_values(inner[0], kind, shape, positions)
        for i, position in enumerate(positions):
            words[position * each : (position + 1) * each] = values[i * each : (i + 1) * each]
        return words
    need(not inner, "a part behind values")
    return form_values(parts[0], kind, shape, range(elements))


def form_values(part: Part, kind: int, shape: list[int], positions: list[int] | range) -> list[int]:
    """Section 4: the words of the values at some positions."""
    need(part.form in (RAW, CODEBOOK, GRID), "an unknown form")
    words = {RAW: raw, CODEBOOK: codebook, GRID: grid}[part.form](part, kind, shape, positions)
    need(len(words) == len(positions) * WORDS[kind], "another number of values")
    return words


def raw(part: Part, kind: int, *_: object) -> list[int]:
    """Section 4.1."""
    stored, *more = part.facts or [kind]
    need(not more and (stored == kind or {stored, kind} <= FLOATS.keys()), "raw: no such conversion")
    size, planes, words = WORD_BYTES[stored], part.arrays, []
    if part.tables:
        table, words = part.tables[0]
        need(not planes and TABLE_BYTES[table] == size, "raw: words")
    else:
        need(len(planes) == size and len({len(plane) for plane in planes}) == 1, "raw: planes")
        need(all(max(plane, default=0) < 256 for plane in planes), "raw: planes of bytes")
        words = [int.from_bytes(word, "little") for word in zip(*planes, strict=True)]
        if stored in ROTATED:
            words = [word >> 1 | (word & 1) << (8 * size - 1) for word in words]
    return words if stored == kind else [word_of(float_of(word, stored), kind) for word in words]


def codebook(part: Part, kind: int, *_: object) -> list[int]:
    """Section 4.2."""
    need((len(part.facts), len(part.arrays), len(part.tables)) == (0, 1, 1), "codebook")
    (table, values), indices = part.tables[0], part.arrays[0]
    need(TABLE_BYTES[table] == WORD_BYTES[kind], "codebook: words")
    need(max(indices, default=-1) < len(values), "codebook: no such entry")
    return [values[i] for i in indices]


def grid(part: Part, kind: int, shape: list[int], positions: list[int] | range) -> list[int]:
    """Section 4.5."""
    need((len(part.facts), len(part.tables)) == (6, 1) and kind in FLOATS, "grid")
    bits, symmetric, axis, group, size, lowest = part.facts
    need(1 <= bits <= 16 and symmetric in (0, 1) and -1 <= axis < len(shape), "grid: facts")
    need(len(part.arrays) == 2 - symmetric and len(part.arrays[0]) == len(positions), "grid: arrays")
    (table, scale), C, inner = part.tables[0], 1, 1
    if axis >= 0:
        need(size > 0 or (size == 0 and group > 0), "grid: group or size")
        C, inner = shape[axis], math.prod(shape[axis + 1 :])
    J = math.prod(shape[: max(axis, 0)]) * inner
    blocks = 1 if axis < 0 else C * -(-J // size) if size else -(-C // group)
    zero_point = [2 ** (bits - 1) - 1] * len(scale) if symmetric else part.arrays[1]
    need(len(scale) == len(zero_point) == blocks, "grid: number of blocks")
    need(table in (4, 5), "grid: type of scale")
    if table == 5:
        scale = [word_of(math.ldexp(1, e - (e >> 7 << 8)), 0) for e in scale]
    need(all(s >> 23 & 255 != 255 for s in scale), "grid: a scale that is not finite")
    values = []
    for q, position in zip(part.arrays[0], positions, strict=True):
        c, j = position // inner % C, position // inner // C * inner + position % inner
        block = 0 if axis < 0 else c * -(-J // size) + j // size if size else c // group
        steps = q + lowest - zero_point[block]
        need(0 <= q + lowest < 2**bits - symmetric and abs(steps) <= 2**24, "grid: q or zero_point")
        # In binary64 the product of 24 and 25 bits is exact: word_of rounds it, to binary32, for the first time.
        product = word_of(float_of(scale[block], 0) * float(steps), 0)
        values.append(word_of(float_of(product, 0), kind))
    return values


def float_of(word: int, kind: int) -> float:
    """A word of an IEEE 754 type or bfloat16 as a binary64, which is exact."""
    word, kind = (word << 16, 0) if kind == 2 else (word, kind)
    return struct.unpack("<" + "fe_d"[kind], word.to_bytes(WORD_BYTES[kind], "little"))[0]


def word_of(x: float, kind: int) -> int:
    """A binary64 as a word of another type: rounded to nearest, ties to even; NaNs are quiet and without payload."""
    exponent_bits, fraction_bits = FLOATS[kind]
    infinity = (1 << exponent_bits) - 1 << fraction_bits
    smallest = 2 - 2 ** (exponent_bits - 1) - fraction_bits  # the exponent of the last place of a subnormal number
    if math.isfinite(x):
        place = max(math.frexp(x)[1] - 1 - fraction_bits, smallest) if x else smallest
        word = min((place - smallest << fraction_bits) + round(math.ldexp(abs(x), -place)), infinity)
    else:
        word = infinity | (x != x) << (fraction_bits - 1)
    return (math.copysign(1, x) < 0) << (exponent_bits + fraction_bits) | word


def stream(source: Source, n: int) -> list[int]:
    """Section 5."""
    first = source.number()
    method, wide, extra = first & 15, first >> 4, Source(b"")
    need(wide <= 1 and method <= 3 and (n or not method), "an unknown kind of stream")
    if wide:
        cut = len(source.data) - source.varint()
        need(cut >= source.at, "extra bits beyond the stream")
        extra, source.data = Source(source.data[cut:]), source.data[:cut]
    symbols = [constant, fixed, huffman, rans][method](source, n)
    source.end()
    if wide:
        need(132 <= max(symbols, default=0) <= 227, "the tokens of a wide stream")
        bits = iter(extra.fields([5 + (t - 128) // 4 for t in symbols if t >= 128]))
        symbols = [t if t < 128 else (4 + t % 4 << 5 + (t - 128) // 4) + next(bits) for t in symbols]
    extra.end()
    return symbols


def constant(source: Source, n: int) -> list[int]:
    value = source.varint()
    need(value < 2**32 and (n or not value), "the value of a constant array")
    return [value] * n


def fixed(source: Source, n: int) -> list[int]:
    width = source.number()
    need(1 <= width <= 32 and n * width <= 8 * len(source.data), "the width or the length of a fixed array")
    return source.fields([width] * n)


def table(source: Source) -> list[int]:
    """Section 5.1."""
    listed, form = divmod(source.varint(), 2)
    need(listed < 256, "symbols are below 256")
    numbers, last, bits = [], 4, ""
    if form == 0:
        numbers = source.fields([4] * (listed + 1))
    while form and bits.count("0") <= listed:
        bits += f"{source.number():08b}"[::-1]
        need(len(bits) < 2**14, "a number outside 1 to 15")
    *ranks, rest = bits.split("0", listed + 1)
    for rank in map(len, ranks):
        absent = 0 if numbers and not numbers[-1] else 3
        last -= unfold(rank - (rank > absent)) if rank != absent else 0
        need(1 <= last <= 15, "a number outside 1 to 15")
        numbers.append(last if rank != absent else 0)
    need(numbers[-1] and "1" not in rest, "the last symbol listed occurs, and bits behind it are zero")
    return numbers


def lanes(source: Source, n: int, unit: int) -> Iterator[tuple[int, bytes]]:
    """Section 5.2: the number of symbols and the bytes of each lane."""
    k = source.number()
    need(10 <= k <= 16, "k is from 10 to 16")
    others, lengths = (n - 1) >> k, []
    if others:
        shortest, width = source.varint(), source.number()
        need(width <= 32 and others * max(shortest * unit, 1) <= len(source.data), "the lengths of the lanes")
        longer = source.fields([width] * others)
        need(min(longer) == 0, "the shortest lane is longer than itself")
        lengths = [(shortest + more) * unit for more in longer]
    for length in lengths:
        yield 1 << k, source.take(length)
    yield n - (others << k), source.rest()


def huffman(source: Source, n: int) -> list[int]:
    """Section 5.3."""
    order = sorted((size, symbol) for symbol, size in enumerate(table(source)) if size)
    longest, code = order[-1][0], 0  # the next code, with as many bits as the longest
    need(longest <= 12 and len(order) > 1, "a Huffman code has lengths up to 12 and two symbols or more")
    need(sum(1 << longest - size for size, _ in order) == 1 << longest, "an incomplete code")
    lookup = [(0, 0)] * (1 << longest)
    for size, symbol in order:
        written = int(f"{code >> longest - size:0{size}b}"[::-1], 2)
        lookup[written :: 1 << size] = [(size, symbol)] * (1 << longest - size)
        code += 1 << longest - size
    symbols = []
    for count, data in lanes(source, n, 1):
        store = have = at = 0
        for _ in range(count):
            if have < longest:
                more = data[at : at + 8]
                store, have, at = store | int.from_bytes(more, "little") << have, have + 8 * len(more), at + len(more)
            size, symbol = lookup[store & (1 << longest) - 1]
            need(size <= have, "a lane that ends early")
            store, have = store >> size, have - size
            symbols.append(symbol)
        need(at == len(data) and have < 8 and not store, "a lane with something left")
    return symbols


def rans(source: Source, n: int) -> list[int]:
    """Section 5.4."""
    p = source.number()
    need(p in (8, 10, 12, 14), "p is 8, 10, 12 or 14")
    numbers = table(source)
    need(max(numbers) <= p, "a number above p")
    fields, slots = iter(source.fields([p - t for t in numbers if t])), []
    frequencies = [(1 << p - t) + next(fields) if t else 0 for t in numbers]
    need(sum(frequencies) == 1 << p, "frequencies that do not add up")
    for symbol, f in enumerate(frequencies):
        slots += [(symbol, f, i) for i in range(f)]  # i is s − F
    symbols = []
    for count, data in lanes(source, n, 2):
        need(len(data) >= 4 and len(data) % 2 == 0, "the length of a lane")
        x, *words = struct.unpack(f"<I{len(data) // 2 - 2}H", data)
        words.reverse()
        for _ in range(count):
            symbol, f, i = slots[x & (1 << p) - 1]
            x = f * (x >> p) + i
            if x < 1 << 16:
                need(words, "a lane that ends early")
                x = x << 16 | words.pop()
            symbols.append(symbol)
        need(x == 1 << 16 and not words, "a lane that does not end as it must")
    return symbols


class Graph:
    """Section 6. A value that is no number, text, truth value or None is a list with its kind first: ["value", number],
    ["tensor", number in the file], ["dtype", name], ["list", items], ["tuple", items], ["mapping", [text, item] …]."""

    def __init__(self, head: Source, tensors: int) -> None:
        self.head, self.expected, self.values, self.tensors = head, 0, 0, []
        for _ in range(head.varint()):
            self.tensors.append((self.tensors[-1] + 1 if self.tensors else 0) + head.signed())
            need(0 <= self.tensors[-1] < tensors, "the graph refers to no tensor of the file")
        need(len(head.data) - head.at <= 2**20, "a graph above the limit")

    def read(self) -> list[Any]:
        head, inputs, nodes = self.head, [], []
        for _ in range(head.varint()):
            name, dtype = head.text(), self.dtype(head.number())
            sizes = [head.varint() for _ in range(head.varint())]
            inputs.append([name, dtype, [size - 1 if size else None for size in sizes]])
        self.values = len(inputs)
        for _ in range(head.varint()):
            operation, counts = head.varint(), head.number()
            args = [self.value() for _ in range(counts & 15)]
            kwargs = [[head.number(), self.value()] for _ in range(counts >> 4)]
            need(operation in OPERATIONS and all(keyword <= 20 for keyword, _ in kwargs), "an operation or a keyword")
            nodes.append([operation, args, kwargs])
            self.values += 1
        outputs = self.value(outputs=True)
        head.end()
        return [inputs, nodes, outputs]

    def dtype(self, number: int) -> str:
        need(number <= 17, "an unknown element type in the graph")
        return TYPES[number]

    def value(self, outputs: bool = False, depth: int = 0) -> Any:
        n, kind = divmod(self.head.varint(), 8)
        if kind == 0:
            need(n < self.values, "a value before the first")
            return ["value", self.values - n - 1]
        if kind == 1:
            number = self.expected + unfold(n)
            need(0 <= number < len(self.tensors), "a tensor that is not in the graph's list")
            self.expected = number + 1
            return ["tensor", self.tensors[number]]
        if kind == 2 or (kind, n) == (4, 3):
            return unfold(n) if kind == 2 else self.head.signed()
        if kind == 3 or (kind == 4 and n in (4, 5) and outputs):
            need(depth < 4, "lists nest too deep")
            items = range(n if kind == 3 else self.head.varint())
            if (kind, n) == (4, 5):
                return ["mapping", [[self.head.text(), self.value(outputs, depth + 1)] for _ in items]]
            return ["tuple" if outputs and kind == 3 else "list", [self.value(outputs, depth + 1) for _ in items]]
        if kind == 4:
            need(n < 3, "an unknown value")
            return (None, False, True)[n]
        if kind == 5:
            return ["dtype", self.dtype(n)]
        if kind == 6:
            return self.head.take(n).decode()
        return float(f"{self.head.signed()}e{unfold(n - 1)}") if n else struct.unpack("<d", self.head.take(8))[0]
