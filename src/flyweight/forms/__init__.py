"""Weight forms: how a matrix is stored and what it decodes to; one file a form, NumPy only.

The one truth shared by the workshop, the .fly file, the NumPy reference and the engine. Every form has
`arrays(layout)` (what the file stores), `fields()` (what the manifest says), `stored` (types and sizes of the arrays),
`from_arrays`, `dense()`, `size_bytes`. Sparse wraps one of the others. Layout "rows": row by row; "panels": as the
engine multiplies (panels.py).
"""

from __future__ import annotations

from typing import Any, cast, get_args

import numpy as np

from flyweight.errors import ArtifactError
from flyweight.forms.codes import Codes, code_bits
from flyweight.forms.float32 import Float32
from flyweight.forms.int8 import Int8
from flyweight.forms.panels import PLANES, Layout
from flyweight.forms.sparse import INNER, Sparse

Dense = Float32 | Int8 | Codes
Form = Dense | Sparse
FORMS: dict[str, type[Float32] | type[Int8] | type[Codes] | type[Sparse]] = {
    "float32": Float32,
    "int8": Int8,
    "codes": Codes,
    "sparse": Sparse,
}


def describe(form: Form) -> dict[str, Any]:
    """Manifest entry of one matrix."""
    name = next(name for name, cls in FORMS.items() if isinstance(form, cls))
    return {"form": name, "shape": list(form.shape), **form.fields()}


def pack(form: Form, layout: Layout = "rows") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest entry and arrays of one matrix."""
    return describe(form), form.arrays(layout)


def multiplied_layout(entry: dict[str, Any], activations: str) -> Layout:
    """Where a matrix with that entry lies when it is multiplied: in panels, if the engine multiplies the form itself.

    That is float32 by float, and int8 or codes of 1, 2, 4 bits with int8 centres by integers, which int8 and static
    activations both are. What it cannot multiply (int8 weights by float activations, float centres, codes of other
    widths) lies in rows and is converted at load.
    """
    form = entry["form"]
    if form == "sparse":
        return "rows" if entry["values"]["form"] == "float32" else multiplied_layout(entry["values"], activations)
    if form == "float32" or activations == "float":
        return "panels" if form == "float32" and activations == "float" else "rows"
    fits = form == "int8" or (entry["table"] == "int8" and code_bits(entry["centres"]) in PLANES)
    return "panels" if fits else "rows"


def check(
    entry: dict[str, Any], arrays: dict[str, np.ndarray], where: str = "weight", layout: str = "rows"
) -> dict[str, np.ndarray]:
    """The arrays that an entry needs, sizes and values checked, nothing unpacked. Errors: ArtifactError.

    Reads every array once (int8: no -128; floats: finite). Codes beyond the table and the filling of panels are
    looked at by `unpack` alone.
    """
    cls = FORMS.get(str(entry.get("form")))
    if cls is None:
        raise ArtifactError(f"{where}: form '{entry.get('form')}' is unknown; this version reads {', '.join(FORMS)}")
    if layout not in get_args(Layout):
        raise ArtifactError(f"{where}: layout {layout!r}; allowed: {', '.join(get_args(Layout))}")
    shape = entry.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n >= 0 for n in shape)):
        raise ArtifactError(f"{where}: shape {shape!r}; a weight has two sizes, both at least 0")
    try:
        size, lie = (shape[0], shape[1]), cast(Layout, layout)
        wanted = (
            INNER[entry["form"]].stored(size, entry, lie) if cls is not Sparse else cls.stored(size, entry, lie, arrays)
        )
        return {part: _expect(arrays[part], part, dtype, lie) for part, (dtype, lie) in wanted.items()}
    except KeyError as error:
        raise ArtifactError(f"{where}: form '{entry['form']}' lacks {error}") from error
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{where}: {error}") from error


def unpack(entry: dict[str, Any], arrays: dict[str, np.ndarray], where: str = "weight", layout: str = "rows") -> Form:
    """The inverse of `pack`; everything is checked before use. Errors: ArtifactError."""
    parts = check(entry, arrays, where, layout)
    rows, columns = entry["shape"]
    try:
        return FORMS[entry["form"]].from_arrays((rows, columns), entry, parts, cast(Layout, layout))
    except ValueError as error:
        raise ArtifactError(f"{where}: {error}") from error


def finite(a: np.ndarray) -> bool:
    """No NaN, nothing infinite: the extremes tell, without an array of flags."""
    return not a.size or bool(np.isfinite(a.min()) and np.isfinite(a.max()))


def _expect(array: np.ndarray, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The array, or a ValueError that says what was found and what is allowed."""
    if array.dtype != dtype or array.shape != shape:
        want = f"{np.dtype(dtype).name} {list(shape)}"
        raise ValueError(f"'{name}' is {array.dtype.name} {list(array.shape)}; it must be {want}")
    if array.dtype == np.float32 and not finite(array):
        raise ValueError(f"'{name}' holds NaN or infinite values; weights must be finite")
    if array.dtype == np.int8 and array.size and array.min() == -128:
        raise ValueError(f"'{name}' holds -128; int8 weights must be from -127 to 127")
    return array
