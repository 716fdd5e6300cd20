"""Mutates the golden files, puts their checksums right, and reads them: `python tests/attacks/fuzz.py SECONDS [SEED]`.

A finding is whatever is not a DeepcompError: another exception, a crash, more time or memory than
the limits below, or bits that the independent decoder reads differently. Each is kept, as a file, in
`fuzz-findings/` where the script is run. The work is done in a process of its own, which may crash.
"""

from __future__ import annotations

import contextlib
import random
import re
import signal
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import torch  # noqa: E402
from build import Record, chunks, in_columns, plain, seal, varint  # noqa: E402
from independent_decoder import decode  # noqa: E402
from limits import limited  # noqa: E402

import deepcomp  # noqa: E402
from deepcomp import container, jit  # noqa: E402
from deepcomp.container import Reader, columns  # noqa: E402
from deepcomp.entry import Entry  # noqa: E402
from deepcomp.errors import DeepcompError  # noqa: E402
from deepcomp.weights.dtypes import DTYPES, to_words  # noqa: E402

MAX_BYTES = 8 << 20  # dense bytes a mutated file may declare
TINY = 64 << 10  # and where the independent decoder, in plain Python, reads it as well
MEMORY, SECONDS = 500 << 20, 2.0
SMALL = 4000  # bytes of a file that the independent decoder reads as well
FINDINGS = Path("fuzz-findings")
NUMBERS = [-(1 << 63), -(1 << 32), -2, -1, 0, 1, 2, 3, 4, 7, 8, 16, 17, 100, 65535, 1 << 24, 1 << 32, (1 << 63) - 1]
ODD = [0, 1, 2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 63, 64, 126, 127, 128, 129, 192, 254, 255]


def take_apart(path: Path) -> list[Record]:
    """The records of a file."""
    with Reader(path) as reader:
        return [Record(r.kind, r.name, r.head, bytes(reader.body(r)), r.last) for r in reader.records]


def seeds() -> list[list[Record]]:
    """The golden files, and each tensor of the large one by itself."""
    files = [take_apart(path) for path in sorted((HERE.parent / "golden").glob("*.dcz"))]
    large = max(files, key=len)
    alone = [Record(0, r.name, r.head, r.body) for r in large if r.body and len(r.body) < SMALL]
    return [*files, *([record] for record in alone)]


def mutate(choose: random.Random, raw: bytes) -> bytes:
    """A few bytes changed, put in, left out, repeated or moved."""
    out = bytearray(raw)
    for _ in range(choose.choice([1, 1, 1, 2, 3, 8])):
        place = choose.randrange(len(out) + 1)
        if choose.random() < 0.5:  # heads of streams and tables are in front
            place = min(place, choose.randrange(24))
        match choose.randrange(6):
            case 0:
                out[place : place + 1] = bytes([choose.choice(ODD)])
            case 1 if place < len(out):
                out[place] ^= 1 << choose.randrange(8)
            case 2 if place < len(out):
                out[place] = (out[place] + choose.choice([-1, 1])) % 256
            case 3:
                out[place:place] = choose.choice([bytes([choose.choice(ODD)]), b"\xff" * 8 + b"\x01", bytes(4)])
            case 4:
                del out[place : place + choose.choice([1, 1, 2, 4, 100])]
            case 5:
                start = choose.randrange(len(out) + 1)
                out[place:place] = out[start : start + choose.choice([1, 2, 4, 16])]
    return bytes(out)


def remake(choose: random.Random, record: Record) -> None:
    """A tensor with another number in its head; the body fits it still."""
    entry = Entry.unpack(record.head, 1 << 20, "")
    if not entry.parts:
        return
    part = choose.choice(entry.parts)
    match choose.randrange(5):
        case 0 if part.facts:
            part.facts[choose.choice(list(part.facts))] = choose.choice(NUMBERS)
        case 1:
            entry.dtype = choose.choice(list(DTYPES.values()))
        case 2 if entry.shape:
            shape, place = list(entry.shape), choose.randrange(len(entry.shape))
            shape[place] = choose.choice([0, 1, shape[place] + 1, shape[place] // 2, 1 << 40])
            entry.shape = tuple(shape) if choose.random() < 0.8 else tuple(shape[place:])
        case 3 if part.symbols:
            name = choose.choice(list(part.symbols))
            count, length = part.symbols[name]
            part.symbols[name] = (max(0, count + choose.choice([-1, 1, -count, count])), length)
        case 4 if part.tables and part is entry.parts[-1]:
            ((name, (kind, count)),) = part.tables.items()
            cut = choose.randint(0, count)
            part.tables[name] = (kind, count - cut)
            record.body = record.body[: len(record.body) - cut * kind.itemsize]
    record.head = entry.pack()


def case(choose: random.Random, files: list[list[Record]]) -> bytes:
    """A mutated file with right checksums."""
    records = [Record(**vars(record)) for record in choose.choice(files)]
    for _ in range(choose.choice([1, 1, 1, 2])):
        if not records:
            break
        record = choose.choice(records)
        match choose.randrange(14):
            case 0 | 1 | 2 | 3:
                record.head = mutate(choose, record.head)
            case 4 | 5 | 6 | 7:
                record.body = mutate(choose, record.body)
            case 8:
                record.name = mutate(choose, record.name.encode() if isinstance(record.name, str) else record.name)
            case 9:
                other = choose.choice(choose.choice(files) or records)
                records[choose.randrange(len(records))] = Record(**vars(other))
            case 10 | 11 | 12 | 13 if record.kind == 0:
                with contextlib.suppress(DeepcompError):  # the head is damaged already
                    remake(choose, record)
    if choose.random() < 0.5:
        with contextlib.suppress(DeepcompError):  # heads that are no heads stand in lists alone
            return side_by_side(choose, records)
    records[-1:] = [Record(**{**vars(record), "last": True}) for record in records[-1:]]
    index = plain(records)
    return seal(chunks(records), index if choose.random() < 0.95 else mutate(choose, index))


def side_by_side(choose: random.Random, records: list[Record]) -> bytes:
    """A file with its index in columns, which may be damaged too."""
    tensors = [record for record in records if record.kind == 0]
    others = {record.kind: record.head for record in records}
    graph, notes = others.get(1, b""), others.get(2, b"")
    closed = choose.randrange(len(tensors) + 1)
    for number, record in enumerate(tensors, 1):
        record.name = record.name if isinstance(record.name, str) else record.name.decode(errors="replace")
        record.last = number == closed or (number < closed and record.last)
    content = columns.pack([container.Record(0, str(r.name), r.head, len(r.body), r.last) for r in tensors])
    content += varint(len(graph)) + graph + notes
    index = in_columns(content if choose.random() < 0.5 else mutate(choose, content))
    index = index if choose.random() < 0.95 else mutate(choose, index)
    return seal(chunks(tensors[:closed]), index + b"".join(record.body for record in tensors[closed:]))


def run(path: Path) -> Any:
    """Load a module and run it on ones."""
    network = deepcomp.load(path, max_bytes=MAX_BYTES)
    network._dcz.max_elements = MAX_BYTES
    inputs = [torch.ones([size or 2 for size in entry.shape], dtype=entry.dtype) for entry in network._dcz.graph.inputs]
    with torch.no_grad():
        return network(*inputs)


def compare(path: Path) -> None:
    """Insist that both decoders read a file, as the same bits, or that neither does.

    What it takes to call operations the independent decoder does not know: networks it may read alone.
    """
    try:
        file = decode(path.read_bytes(), TINY)
    except ValueError:
        file = None
    try:
        deepcomp.verify(path, max_bytes=TINY)
    except DeepcompError:
        if file is None or file.graph is not None:
            return
        raise AssertionError("refused where the independent decoder reads it") from None
    if file is None:
        raise AssertionError("read where the independent decoder refuses it")
    expected = {tensor.name: tensor.data for tensor in file.tensors}
    for name, tensor in deepcomp.load_state_dict(path, max_bytes=TINY).items():
        if bytes(to_words(tensor)) != expected[name] and not same_but_for_nans(tensor, expected[name]):
            raise AssertionError(f"{name!r} differs from what the independent decoder reads")


def same_but_for_nans(tensor: torch.Tensor, raw: bytes) -> bool:
    """Whether floats differ in nothing but which NaN they are: a conversion may change that."""
    other = torch.frombuffer(bytearray(raw), dtype=tensor.dtype).reshape(tensor.shape)
    return tensor.is_floating_point() and torch.allclose(tensor, other, rtol=0, atol=0, equal_nan=True)


def readers(small: bool) -> list[Callable[[Path], Any]]:
    def verify(path: Path) -> Any:
        return deepcomp.verify(path, max_bytes=MAX_BYTES)

    def inspect(path: Path) -> Any:
        return deepcomp.inspect(path, max_bytes=MAX_BYTES)

    return [verify, inspect, run, *([compare] if small else [])]


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    with contextlib.suppress(DeepcompError):
        yield


def work(seconds: float, seed: int) -> None:
    """Read mutated files until the time is over."""
    torch.set_num_threads(1)
    choose, files, path = random.Random(seed), seeds(), FINDINGS / f"running-{seed}.dcz"
    for golden in (HERE.parent / "golden").glob("*.dcz"):
        for numba in (True, False):
            with jit.use(numba):
                deepcomp.verify(golden)
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = case(choose, files)
        path.write_bytes(data)
        for read in readers(len(data) < SMALL):
            try:
                with limited(MEMORY, SECONDS), jit.use(choose.random() < 0.5), only_our_errors():
                    read(path)
            except Exception as error:
                keep(path, f"{type(error).__name__} at {where(error)}: {str(error)[:200]}")
        done += 1
    say(f"seed {seed}: {done} files read")


def where(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


SEEN: set[str] = set()


def keep(path: Path, what: str) -> None:
    """Note a finding, once for each that differs in more than names and numbers."""
    like = re.sub(r"'.*?'|\".*?\"|-?\d+|/\S*", "", what)
    if like not in SEEN:
        SEEN.add(like)
        kept = FINDINGS / f"{zlib.crc32(path.read_bytes()):08x}.dcz"
        kept.write_bytes(path.read_bytes())
        say(f"{kept}: {what}")


def main(seconds: float, seed: int) -> None:
    """Keep a worker going, with a new seed where one crashed."""
    FINDINGS.mkdir(exist_ok=True)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        done = subprocess.run([sys.executable, __file__, str(left), str(seed), "work"])
        if done.returncode >= 0:
            sys.exit(done.returncode)
        signal_name = signal.Signals(-done.returncode).name
        keep(FINDINGS / f"running-{seed}.dcz", f"crash by {signal_name}: seed {seed}")
        seed += 1


if __name__ == "__main__":
    (work if len(sys.argv) > 3 else main)(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
