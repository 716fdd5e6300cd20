"""`decode` reads `.dcz` files: a decoder written from `docs/format.md` alone, which shares no line with deepcomp.

Its beginning is in `independent_source.py`, section 2 in `independent_index.py`, 5.5 in `independent_context.py`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import struct
import zlib
from collections import namedtuple
from typing import Any

from independent_context import Array, context
from independent_index import index
from independent_source import Source, need, unfold

# `data` holds the bits of the elements; `same_as` is the number of the tensor that an equal or tied one refers to.
# `rows`: which of its rows are live, where its first array says so.
Tensor = namedtuple("Tensor", "name role dtype shape data same_as tied rows")
File = namedtuple("File", "tensors metadata graph")
Part = namedtuple("Part", "form facts arrays tables")  # a table is (type, words)

NAMES = """float32 float16 bfloat16 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64 bool float8_e4m3fn
float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu complex64 complex128"""
TYPES, ROLES = NAMES.split(), ["parameter", "buffer", "constant"]
WORD_BYTES = [4, 2, 2, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 1, 1, 1, 1, 1, 4, 8]
FLOATS = {0: (8, 23), 1: (5, 10), 2: (8, 7), 3: (11, 52)}  # bits of exponent and fraction
BOOL, ROTATED, WORDS = 12, {0, 1, 2, 3, 18, 19}, [1] * 18 + [2, 2]  # words of an element
RAW, CODEBOOK, MASK, ROWS, GRID, SHIFTED, SCALED = 1, 2, 3, 4, 5, 6, 7
TABLE_BYTES, WORD_TABLES = [1, 2, 4, 8, 4, 1], {1: 0, 2: 1, 4: 2, 8: 3}  # the type of a table of words, by their bytes
GAPS = {134, *range(100, 128), *range(154, 160), *range(171, 176), *range(187, 192), 206, 207, *range(229, 240)}
GAPS |= {*range(270, 288), *range(305, 312), *range(325, 336), *range(387, 400), *range(423, 432), *range(461, 464)}
OPERATIONS = {*range(466)} - GAPS


def pick(names: list[Any], number: int) -> Any:
    need(number < len(names), f"a number above that of {names[-1]}")
    return names[number]


def decode(data: bytes, max_bytes: int | None = None) -> File:
    """Sections 1, 2 (kinds of record) and 7: `max_bytes` bounds the dense bytes of all tensors."""
    need(len(data) >= 46 and data[:5] == b"\x93DCZ\x01", "not a file of version 1")
    start = len(data) - 40 - int.from_bytes(data[-40:-36], "little")
    need(start >= 6 and len(data) - start <= 2**28 + 40, "the index is longer than the file or the limit")
    need(zlib.crc32(data[:6] + data[start:-4]) == int.from_bytes(data[-4:], "little"), "CRC-32 of the trailer")
    need(hashlib.sha256(data[:-36]).digest() == data[-36:-4], "SHA-256")
    limit = max(2**32, 2000 * len(data)) if max_bytes is None else max_bytes
    chunks, crc, filled, tensors, metadata, graph = Source(data[6:start]), 0, 0, [], {}, None
    try:
        records, behind = index(Source(data[start:-40]))
        closed = max((number for number, record in enumerate(records, 1) if record.last), default=0)
        for number, (kind, last, name, head, size) in enumerate(records):
            need(kind == 0 or not (name or size), "a graph or metadata with a name or a body")
            body = (chunks if number < closed else behind).take(size)
            if kind == 0:
                tensors.append(tensor(name, Source(head), body, tensors, limit))
                limit -= len(tensors[-1].data)
            elif kind == 1:
                graph = read_graph(Source(head), sum(record.kind == 0 for record in records))
            else:
                need(len(head) <= 2**20, "metadata above the limit")
                metadata = json.loads(head.decode(), parse_constant=lambda name: need(False, "no JSON"))
            crc, filled = zlib.crc32(body, crc), filled + size
            if last and filled:
                need(crc == chunks.number(4), "CRC-32 of a chunk")
                crc, filled = 0, 0
    except (zlib.error, RecursionError) as error:
        raise ValueError(str(error)) from error
    chunks.end()
    behind.end()
    need(isinstance(metadata, dict), "metadata that is no JSON object")
    return File(tensors, metadata, graph)


def tensor(name: str, head: Source, body: bytes, earlier: list[Tensor], limit: int) -> Tensor:
    """Section 3, all but the parts."""
    kind, role = divmod(head.number(), 4)
    rank = head.varint()
    need(kind < len(TYPES) and role < len(ROLES) and rank <= 32, "an unknown type or role, or too many dimensions")
    shape = [head.varint() for _ in range(rank)]
    size = WORD_BYTES[kind] * WORDS[kind]
    need(math.prod(max(n, 1) for n in shape) * size <= 2**62, "a shape beyond all bounds")
    need(math.prod(shape) * size <= limit, "more dense bytes than allowed")
    form, same_as, rows = head.number(), None, None
    if form in (126, 127):
        same_as = head.varint()
        need(same_as < len(earlier) and not body, "a reference to no earlier tensor, or with a body")
        data, named = earlier[same_as].data, earlier[same_as]
        need((named.dtype, named.shape, named.same_as) == (TYPES[kind], shape, None), "a reference to another kind")
    else:
        found = parts(form, head, Source(body), shape, WORDS[kind], earlier)
        alone = [part.form for part in found] == [RAW]
        need(alone or (math.prod(shape) and WORDS[kind] == 1), "raw alone: a complex type, or no elements")
        words = tensor_words(found, kind, shape)
        data = b"".join(word.to_bytes(WORD_BYTES[kind], "little") for word in words)
        rows = found[0].arrays[0].rows if len(found) == 1 and found[0].arrays else None
    head.end()
    return Tensor(name, ROLES[role], TYPES[kind], shape, data, same_as, form == 127, rows)


def parts(form: int, head: Source, body: Source, shape: list[int], words: int, earlier: list[Tensor]) -> list[Part]:
    """Section 3, the parts: head and body have them in one order."""
    elements, found = math.prod(shape), []
    symbols = elements
    for _ in range(3):
        counts = head.number()
        facts, arrays, tables = [head.signed() for _ in range(counts & 7)], [], []
        for _ in range(counts >> 3 & 15):
            count = head.varint()
            need(count != symbols + 1, "a number of symbols that is spelled 0")
            symbols = count - 1 if count else symbols
            need(symbols <= elements * words, "more symbols than elements")
            arrays.append(stream(Source(body.take(head.varint())), symbols, shape, earlier))
        for _ in range(counts >> 7):
            kind = head.number()
            width = pick(TABLE_BYTES, kind)
            tables.append((kind, [body.number(width) for _ in range(head.varint())]))
        found.append(Part(form & 127, facts, arrays, tables))
        if form < 128:
            body.end()
            return found
        form = head.number()
    raise ValueError("more than three parts")


def tensor_words(parts: list[Part], kind: int, shape: list[int]) -> list[int]:
    """Sections 4, 4.3 and 4.4: the words of a whole tensor, whatever its parts."""
    (form, facts, arrays, tables), *inner = parts
    elements, counts = math.prod(shape), (len(facts), len(arrays), len(tables))
    if form == ROWS:
        need(counts == (1, 1, 0) and inner and inner[0].form != ROWS and shape, "rows")
        need(max(arrays[0], default=-1) < facts[0] <= shape[0] == len(arrays[0]), "rows: slices")
        slices, size = tensor_words(inner, kind, [facts[0], *shape[1:]]), math.prod(shape[1:])
        return [word for row in arrays[0] for word in slices[row * size : (row + 1) * size]]
    if form == MASK:
        need(counts == (0, 1, 0) and len(inner) == 1 and inner[0].form in (RAW, CODEBOOK, GRID, SCALED), "mask")
        positions = [position - 1 for position in itertools.accumulate(gap + 1 for gap in arrays[0])]
        need(not positions or positions[-1] < elements, "mask: a position beyond the tensor")
        words = [0] * elements
        for position, word in zip(positions, form_values(inner[0], kind, shape, positions), strict=True):
            words[position] = word
        return words
    need(not inner, "a part behind values")
    return form_values(parts[0], kind, shape, range(elements))


def form_values(part: Part, kind: int, shape: list[int], positions: list[int] | range) -> list[int]:
    """Section 4: the words of the values at some positions."""
    forms = {RAW: raw, CODEBOOK: codebook, GRID: grid, SHIFTED: shifted, SCALED: scaled}
    need(part.form in forms, "an unknown form")
    words = forms[part.form](part, kind, shape, positions)
    need(len(words) == len(positions) * WORDS[kind], "another number of values")
    need(kind != BOOL or max(words, default=0) <= 1, "a bool is 0 or 1")
    return words


def raw(part: Part, kind: int, *_: object) -> list[int]:
    """Section 4.1."""
    stored, *more = part.facts or [kind]
    widened = {stored, kind} <= FLOATS.keys() and WORD_BYTES[stored] < WORD_BYTES[kind]
    need(not more and (stored == kind or widened), "raw: no such conversion")
    size, planes, words = WORD_BYTES[stored], part.arrays, []
    if part.tables:
        table, words = part.tables[0]
        need(not planes and WORD_TABLES[size] == table, "raw: words")
    else:
        need(len(planes) == size and len({len(plane) for plane in planes}) == 1, "raw: planes")
        words = [int.from_bytes(word, "little") for word in zip(*planes, strict=True)]  # refuses what is no byte
        if stored in ROTATED:
            words = [word >> 1 | (word & 1) << (8 * size - 1) for word in words]
    return words if stored == kind else [word_of(float_of(word, stored), kind) for word in words]


def shifted(part: Part, kind: int, shape: list[int], _: object) -> list[int]:
    """Section 4.6."""
    shift, *planes = part.arrays or [[]]
    need(not part.facts and not part.tables and kind in (0, 1, 2) and bool(shape), "shifted")
    need(len(shift) == shape[0] and max(shift, default=0) < 256 and len(planes) == WORD_BYTES[kind], "shifted: shifts")
    row = math.prod(shape[1:])
    need(len(planes[-1]) == row * shape[0], "shifted: planes")
    planes[-1] = [(byte + shift[i // row]) % 256 for i, byte in enumerate(planes[-1])]
    return raw(Part(RAW, [], planes, []), kind)


def codebook(part: Part, kind: int, *_: object) -> list[int]:
    """Section 4.2."""
    need((len(part.facts), len(part.arrays), len(part.tables)) == (0, 1, 1), "codebook")
    (table, values), indices = part.tables[0], part.arrays[0]
    need(WORD_TABLES[WORD_BYTES[kind]] == table and max(indices, default=-1) < len(values), "codebook: entries")
    need(kind != BOOL or max(values, default=0) <= 1, "a bool is 0 or 1, used or not")
    return [values[i] for i in indices]


def grid(part: Part, kind: int, shape: list[int], positions: list[int] | range) -> list[int]:
    """Section 4.5."""
    need((len(part.facts), len(part.tables)) == (6, 1) and kind in FLOATS, "grid")
    bits, symmetric, axis, group, size, lowest = part.facts
    need(1 <= bits <= 16 and symmetric in (0, 1), "grid: facts")
    need(len(part.arrays) == 2 - symmetric and len(part.arrays[0]) == len(positions), "grid: arrays")
    count, blocks = blocks_of(shape, axis, group, size, positions)
    scale = scales(*part.tables[0], count)
    zero_point = [2 ** (bits - 1) - 1] * count if symmetric else part.arrays[1]
    need(len(zero_point) == count and max(zero_point) < 2**bits, "grid: zero-points, or one beyond the grid")
    need(all(0 <= q + lowest < 2**bits - symmetric for q in part.arrays[0]), "grid: an integer beyond the grid")
    held = zip(part.arrays[0], blocks, strict=True)
    return [product(scale[block], q + lowest - zero_point[block], kind) for q, block in held]


def scaled(part: Part, kind: int, shape: list[int], positions: list[int] | range) -> list[int]:
    """Section 4.7."""
    need((len(part.facts), len(part.arrays), len(part.tables)) == (5, 2, 1) and kind in FLOATS, "scaled")
    (sides, axis, group, size, lowest), (q, levels) = part.facts, part.arrays
    need(sides in (1, 2) and len(q) == len(positions), "scaled: sides, or the number of values")
    need(all(a < b for a, b in itertools.pairwise(levels)), "scaled: levels that do not ascend")
    need(all(-(2**16) <= level + lowest <= 2**16 for level in levels), "scaled: a level out of range")
    need(max(q, default=-1) < len(levels), "scaled: a level that is not there")
    count, blocks = blocks_of(shape, axis, group, size, positions)
    scale, values = scales(*part.tables[0], sides * count), []
    for number, block in zip(q, blocks, strict=True):
        level = levels[number] + lowest
        values.append(product(scale[sides * block + (sides == 2 and level < 0)], level, kind))
    return values


def blocks_of(
    shape: list[int], axis: int, group: int, size: int, positions: list[int] | range
) -> tuple[int, list[int]]:
    """Section 4.5, how many blocks there are, and which one each position is in."""
    need(-1 <= axis < len(shape), "an axis that is none")
    C, inner = (shape[axis], math.prod(shape[axis + 1 :])) if axis >= 0 else (1, math.prod(shape))
    J = math.prod(shape[: max(axis, 0)]) * inner
    need(1 <= group <= C and 0 <= size <= (J if axis >= 0 else 0) and (group == 1 or size == 0), "group or size")
    blocks = []
    for position in positions:
        c, j = position // inner % C, position // inner // C * inner + position % inner
        blocks.append(0 if axis < 0 else c * -(-J // size) + j // size if size else c // group)
    return 1 if axis < 0 else C * -(-J // size) if size else -(-C // group), blocks


def scales(table: int, entries: list[int], count: int) -> list[int]:
    """Section 4.5, the scales as words of binary32."""
    need(table in (0, 1, 4, 5) and len(entries) == count, "the type or the number of scales")
    if table == 5:
        return [word_of(math.ldexp(1, e - (e >> 7 << 8)), 0) for e in entries]
    if table == 0:
        return [word_of(math.ldexp(8 + b % 8, b // 8 - 34), 0) for b in entries]
    words = [word_of(float_of(s, 1), 0) for s in entries] if table == 1 else entries
    need(all(s >> 23 & 255 != 255 for s in words), "a scale that is not finite")
    return words


def product(scale: int, number: int, kind: int) -> int:
    """A binary32 times a whole number of up to 18 bits, exact in binary64, rounded to binary32 and converted."""
    return word_of(float_of(word_of(float_of(scale, 0) * float(number), 0), 0), kind)


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


def stream(source: Source, n: int, shape: list[int], earlier: list[Tensor]) -> Array:
    """Section 5."""
    first = source.number()
    method, wide, above, extra = first & 15, first >> 4 & 1, first >> 5, Source(b"")
    need(method <= 4 - wide and (n or not first), "an unknown kind of stream")
    need(above <= {2: 1, 3: 1, 4: 7}.get(method, 0), "bits that this kind of stream has not")
    if method == 4:
        return context(source, above, n, shape, [tensor.rows for tensor in earlier])
    centre = source.varint() if above else 0
    need(centre < 2**32, "a centre above all symbols")
    if wide:
        length, data = source.varint(), source.read()
        need(length <= len(data), "extra bits beyond the stream")
        source, extra = Source(data[: len(data) - length]), Source(data[len(data) - length :])
    if method == 0:
        value = source.varint()
        need(value < (2**32 if n else 1), "the value of a constant array")
        symbols = [value] * n
    elif method == 1:
        width = source.number()
        need(1 <= width <= 32 and n * width <= 8 * len(source.getbuffer()), "the width or the length of a fixed array")
        symbols = source.fields([width] * n)
    else:
        symbols = (huffman if method == 2 else rans)(source, n)
    source.end()
    if wide:
        need(132 <= max(symbols, default=0) <= 227, "the tokens of a wide stream")
        bits = iter(extra.fields([5 + (t - 128) // 4 for t in symbols if t >= 128]))
        symbols = [t if t < 128 else (4 + t % 4 << 5 + (t - 128) // 4) + next(bits) for t in symbols]
    extra.end()
    if above:
        symbols = [centre - (s + 1) // 2 if s % 2 else centre + s // 2 for s in symbols]
        need(min(symbols) >= 0 and max(symbols) < 2**32, "symbols below 0 or above 32 bits")
    return Array(symbols)


def table(source: Source) -> list[int]:
    """Section 5.1."""
    listed, form = divmod(source.varint(), 2)
    need(listed < 256, "symbols are below 256")
    numbers, last, bits = [] if form else source.fields([4] * (listed + 1)), 4, ""
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


def lanes(source: Source, n: int, unit: int) -> list[tuple[int, bytes]]:
    """Section 5.2: the number of symbols and the bytes of each lane."""
    k = source.number()
    need(10 <= k <= 16, "k is from 10 to 16")
    others, found = (n - 1) >> k, []
    if others:
        shortest, width = source.varint(), source.number()
        need(width <= 32, "the width of the lanes' lengths")
        longer = source.fields([width] * others)
        need(min(longer) == 0, "the shortest lane is longer than itself")
        found = [(1 << k, source.take((shortest + more) * unit)) for more in longer]
    return [*found, (n - (others << k), source.read())]


def huffman(source: Source, n: int) -> list[int]:
    """Section 5.3: in the order of the canonical code, the codes of `longest` bits that begin with each code."""
    order = sorted((size, symbol) for symbol, size in enumerate(table(source)) if size)
    longest, symbols = order[-1][0], []
    need(longest <= 12 and len(order) > 1, "the lengths of a Huffman code")
    lookup = [entry for entry in order for _ in range(1 << longest - entry[0])]
    need(len(lookup) == 1 << longest, "a Huffman code that is not complete")
    for count, data in lanes(source, n, 1):
        bits, at = f"{int.from_bytes(data, 'little'):0{8 * len(data)}b}"[::-1] + "0" * longest, 0
        for _ in range(count):
            size, symbol = lookup[int(bits[at : at + longest], 2)]
            at += size
            symbols.append(symbol)
        need(at <= 8 * len(data) < at + 8 and "1" not in bits[at:], "the length of a lane, or bits that must be zero")
    return symbols


def rans(source: Source, n: int) -> list[int]:
    """Section 5.4."""
    p = source.number()
    numbers = table(source)
    need(p in (8, 10, 12, 14) and max(numbers) <= p, "p, or a number above p")
    fields = iter(source.fields([p - t for t in numbers if t]))
    frequencies = [(1 << p - t) + next(fields) if t else 0 for t in numbers]
    need(sum(frequencies) == 1 << p, "frequencies that do not add up")
    slots = [(symbol, f, i) for symbol, f in enumerate(frequencies) for i in range(f)]  # i is s − F
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


def read_graph(head: Source, tensors: int) -> list[Any]:
    """Section 6. A value that is no number, text, truth value or None is a list with its kind first: ["value", number],
    ["tensor", number in the file], ["dtype", name], ["list", items], ["tuple", items], ["mapping", [text, item] …]."""
    numbers, expected, values, inputs, nodes = [], 0, 0, [], []
    for _ in range(head.varint()):
        numbers.append((numbers[-1] + 1 if numbers else 0) + head.signed())
        need(0 <= numbers[-1] < tensors, "the graph refers to no tensor of the file")
    need(len(head.getbuffer()) - head.tell() <= 2**20, "a graph above the limit")

    def value(outputs: bool = False, depth: int = 0) -> Any:
        nonlocal expected
        n, kind = divmod(head.varint(), 8)
        if kind == 0:
            need(n < values, "a value before the first")
            return ["value", values - n - 1]
        if kind == 1:
            number, expected = expected + unfold(n), expected + unfold(n) + 1
            need(0 <= number < len(numbers), "a tensor that is not in the graph's list")
            return ["tensor", numbers[number]]
        if kind == 2 or (kind, n) == (4, 3):
            return unfold(n) if kind == 2 else head.signed()
        if kind == 3 or (kind == 4 and n in (4, 5) and outputs):
            need(depth < 4, "lists nest too deep")
            items = range(n if kind == 3 else head.varint())
            if (kind, n) == (4, 5):
                pairs = [[head.text(255), value(outputs, depth + 1)] for _ in items]
                need(len({name for name, _ in pairs}) == len(pairs), "two outputs of one name")
                return ["mapping", pairs]
            return ["tuple" if outputs and kind == 3 else "list", [value(outputs, depth + 1) for _ in items]]
        if kind == 4:
            return pick([None, False, True], n)
        if kind == 5:
            return ["dtype", pick(TYPES[:18], n)]
        if kind == 6:
            need(n <= 255, "a text above the limit")
            return head.take(n).decode()
        if n == 0:
            return struct.unpack("<d", head.take(8))[0]
        need(abs(unfold(n - 1)) <= 400, "an exponent beyond 400")
        number = float(f"{head.signed()}e{unfold(n - 1)}")
        need(math.isfinite(number), "a number that overflows")
        return number

    for _ in range(head.varint()):
        name, kind, rank = head.text(255), pick(TYPES[:18], head.number()), head.varint()
        need(name.isidentifier() and rank <= 16, "the name or the rank of an input")
        sizes = [head.varint() for _ in range(rank)]
        need(max(sizes, default=0) <= 2**48, "a size of an input")
        inputs.append([name, kind, [size - 1 if size else None for size in sizes]])
    values = len(inputs)
    need(len({name for name, _, _ in inputs}) == values, "two inputs of one name")
    for _ in range(head.varint()):
        operation, counts = head.varint(), head.number()
        args = [value() for _ in range(counts & 15)]
        kwargs = [[head.number(), value()] for _ in range(counts >> 4)]
        keywords = {keyword for keyword, _ in kwargs}
        need(operation in OPERATIONS and max(keywords, default=0) <= 20, "an operation or a keyword")
        need(len(keywords) == len(kwargs), "a keyword twice")
        nodes.append([operation, args, kwargs])
        values += 1
    outputs = value(outputs=True)
    head.end()
    return [inputs, nodes, outputs]
