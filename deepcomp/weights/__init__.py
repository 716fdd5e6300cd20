"""The forms a weight can be stored in; each is trainable, packable and the inverse of itself.

==========  ==========================================  ============
form        what it holds                               file
==========  ==========================================  ============
`Raw`       the exact bits of any tensor                raw.py
`Shifted`   the same, rows of different scale           shifted.py
`Codebook`  shared values                               codebook.py
`Grid`      a uniform grid: scale, zero-point, bits     grid.py
`Scaled`    few levels times a scale: binary, ternary   scaled.py
`Mask`      sparse positions over one of the above      mask.py
`Rows`      distinct rows, over one of the above        rows.py
==========  ==========================================  ============

`exact` finds the smallest of these that loses nothing.
"""

from __future__ import annotations

from deepcomp.errors import FormatError
from deepcomp.weights.codebook import Codebook
from deepcomp.weights.form import VALUES, Form, Packed
from deepcomp.weights.grid import Grid
from deepcomp.weights.mask import Mask
from deepcomp.weights.raw import Raw
from deepcomp.weights.rows import Rows
from deepcomp.weights.scaled import Scaled
from deepcomp.weights.shifted import Shifted

__all__ = [
    "FORMS",
    "VALUES",
    "Codebook",
    "Form",
    "Grid",
    "Mask",
    "Packed",
    "Raw",
    "Rows",
    "Scaled",
    "Shifted",
    "form_class",
]

FORMS: dict[int, type[Form]] = {form.code: form for form in (Raw, Codebook, Mask, Rows, Grid, Shifted, Scaled)}


def form_class(code: int) -> type[Form]:
    """The form with this number in the file."""
    if code not in FORMS:
        raise FormatError(f"form {code} found, one of {sorted(FORMS)} expected")
    return FORMS[code]
