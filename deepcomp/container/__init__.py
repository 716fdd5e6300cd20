"""The `.dcz` file as bytes: records behind checksums, an index, a trailer. Knows no tensors.

`layout` says what stands where, `columns` how the index holds the heads of tensors, `Writer` writes a file front to
back, `Reader` reads it back.
`docs/format.md` is the normative text.
"""

from deepcomp.container.layout import MAJOR, MINOR
from deepcomp.container.reader import Reader
from deepcomp.container.record import Record
from deepcomp.container.writer import Writer

__all__ = ["MAJOR", "MINOR", "Reader", "Record", "Writer"]
