"""Section 2 of `docs/format.md`, for `independent_decoder`."""

from __future__ import annotations

import zlib
from collections import namedtuple

from independent_source import Source, need

Record = namedtuple("Record", "kind last name head size")

FIRST = (
    b"num_batches_trackedrunning_varrunning_meanembeddings.position_embeddings.weighttoken_type_embeddingsencoder.la"
    b"yers.0.self_attn.in_proj_weightout_proj.biasattention.self.query.weightkey.value.output.dense.LayerNorm.weight"
    b"_ih_l0weight_hh_l0bias_ih_l0bias_hh_l0norm1.norm2.linear1.linear2.downsample.0.features.layer1.0.conv1.weightl"
    b'ayer2.0.bn1.biaslayer3.0.conv2.bn2.classifier.linear.conv3.conv2.conv1.{"recipe": "deep-compression", "seed": '
    b'0, "version": "0.1.0"}{"recipe": "lossless", "seed": 0, "version": '
    b'"0.1.0"}fc3.biasfc3.weightfc2.biasfc2.weightfc1.biasfc1.weight'
)
NAMED = """
embedding.weight encoder.layers.0.self_attn.in_proj_weight encoder.layers.0.self_attn.out_proj.bias
encoder.layers.0.linear1.weight encoder.layers.0.norm1.weight attention.self.query.weight attention.output.dense.bias
attention.output.LayerNorm.weight rnn.weight_ih_l0 rnn.bias_hh_l0 features.0.weight features.0.bias
classifier.1.weight classifier.1.bias 0.weight 0.bias 2.weight 2.bias layer1.0.bn1.bias
layer1.0.bn1.num_batches_tracked layer1.0.bn1.running_mean layer1.0.bn1.running_var layer1.0.bn1.weight
layer1.0.conv1.weight layer1.0.conv2.weight layer2.0.downsample.0.weight linear.bias linear.weight conv1.weight
conv1.bias conv2.weight conv2.bias fc1.weight fc1.bias fc2.weight fc2.bias fc3.weight fc3.bias bn1.weight bn1.bias
bn1.running_mean bn1.running_var bn1.num_batches_tracked bn1.running_mean bn1.running_var bn1.weight conv1.bias
conv1.weight conv2.bias conv2.weight fc1.bias fc1.weight fc2.bias fc2.weight fc3.bias fc3.weight
"""
SECOND = bytes.fromhex("""
00001d010100001d010100011000011001100110012000012001200120014000014001400140041010030304201003030420200303044020030304
404003030104010401010505010102010a020a01810201810201208308028801018001830802880180018001808308028807950201020000018001
80018001800180018001800180058e0802000200000180058e0802000200000120058e080200020000058e080200020000058e100201020000058e
1002010200000502100210021002200220022004100420044005010501050100010001000100010001000000000000000000000000000000000000
0000000000001c04000b8218010119030012221f06201000040f00141d01002d03000f000f0c2502003302020202820182010b0700010413121213
1212131212820c0b0500010413222213121213120e0200280e0218002702001322320a03000101000c0900010101010c17025702140d01000b0500
01041312121312120c0900010101010c17025702140b05000104131212131212040304030403040304030403010178000200010178000400020002
0b030001010d01001102001322220b030001011102001322220d0100100200120a0a030001010d01000a0300010100
""")
SECOND = b"".join(bytes([len(name)]) + name.encode() for name in NAMED.split()) + SECOND
SECOND += (
    b'", "seed": 0, "source": {"command": "{"recipe": "lossless", "seed": 0, "version": "0.1.0"}'
    b'{"recipe": "deep-compression", "seed": 0, "version": "0.1.0"}'
    b'{"recipe": "uniform", "seed": 0, "version": "0.1.0"}{"recipe": "smallest", "seed": 0, "version": "0.1.0"}'
)
TABLE_BYTES = [1, 2, 4, 8, 4, 1]


def index(source: Source) -> tuple[list[Record], Source]:
    """The records, and the open chunk."""
    coding, behind = source.number(), b""
    need(coding < 3, "the index begins with 0, 1 or 2")
    if coding:
        most, inflater = 2**28, zlib.decompressobj(-15, zdict=(FIRST, SECOND)[coding - 1])
        length = source.varint() if coding == 1 else None
        plain = inflater.decompress(source.read(), most + 1)
        need(inflater.eof and len(plain) <= most, "the deflate stream of the index")
        source, behind = Source(plain), inflater.unused_data
        need(coding == 2 or (length == len(plain) and not behind), "the length of the deflated list")
    records = columns(source) if coding == 2 else listed(source)
    source.end()
    need(coding == 2 or not records or records[-1].last, "an open chunk at the end")
    need(len({(record.kind, record.name) for record in records}) == len(records), "two records with one name")
    return records, Source(behind)


def listed(source: Source) -> list[Record]:
    """Section 2.1."""
    count, records = source.varint(), []
    need(count <= 2**21, "more records than allowed")
    for _ in range(count):
        kind, last = divmod(source.varint(), 2)
        need(kind <= 2, "an unknown kind")
        name = source.text(65536)
        records.append(Record(kind, last, name, source.take(source.varint()), source.varint()))
    return records


def columns(source: Source) -> list[Record]:
    """Section 2.2, with heads put together as section 3 has them."""
    count = source.varint()
    need(count <= 2**21, "more records than allowed")
    names = [source.text(65536) for _ in range(count)]
    types = [source.number() for _ in names]
    shapes = [varints(source, source.varint()) for _ in names]
    tensors = [forms(source) for _ in names]
    parts = [part for tensor in tensors for part in tensor]
    for part in parts:
        part["counts"] = varints(source, part["arrays"])
    for part in parts:
        part["tables"] = [(source.number(), source.varint()) for _ in range(part["tables"])]
    for part in parts:
        part["lengths"] = varints(source, part["arrays"])
    records = []
    for name, kind, shape, tensor in zip(names, types, shapes, tensors, strict=True):
        head, size = bytes([kind & 127]) + varint(len(shape)) + b"".join(map(varint, shape)), 0
        for part in tensor:
            head += part["form"]
            for symbols, length in zip(part["counts"], part["lengths"], strict=True):
                head, size = head + varint(symbols) + varint(length), size + length
            for table, elements in part["tables"]:
                need(table < len(TABLE_BYTES), "the type of a table")
                head, size = head + bytes([table]) + varint(elements), size + TABLE_BYTES[table] * elements
        records.append(Record(0, kind >> 7, name, head, size))
    graph = source.take(source.varint())
    metadata = source.read()
    return records + [Record(1, 0, "", graph, 0)] * bool(graph) + [Record(2, 0, "", metadata, 0)] * bool(metadata)


def forms(source: Source) -> list[dict]:
    """The line of forms, of a tensor: how the head of each part begins, and how many arrays and tables it has."""
    found, more = [], True
    while more:
        form = source.number()
        if form in (126, 127):
            return [*found, {"form": bytes([form]) + varint(source.varint()), "arrays": 0, "tables": 0}]
        counts = source.number()
        facts = b"".join(map(varint, varints(source, counts & 7)))
        found.append({"form": bytes([form, counts]) + facts, "arrays": counts >> 3 & 15, "tables": counts >> 7})
        need(len(found) <= 3, "more than three parts")
        more = form >= 128
    return found


def varints(source: Source, count: int) -> list[int]:
    return [source.varint() for _ in range(count)]


def varint(value: int) -> bytes:
    """The bytes that `Source.varint` reads."""
    groups = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])
