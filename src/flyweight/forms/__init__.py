"""Weight forms: how a matrix is stored and what it decodes to; one file a form, NumPy only.

The one truth shared by the workshop, the .fly file, the NumPy reference and the engine. Every form has
`arrays()` (what the file stores), `fields()` (what the manifest says), `from_arrays`, `dense()`, `size_bytes`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from flyweight.errors import ArtifactError
from flyweight.forms.codes import Codes
from flyweight.forms.float32 import Float32
from flyweight.forms.int8 import Int8

Form = Float32 | Int8 | Codes
FORMS: dict[str, type[Float32] | type[Int8] | type[Codes]] = {"float32": Float32, "int8": Int8, "codes": Codes}


def pack(form: Form) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest entry and arrays of one matrix."""
    name = next(name for name, cls in FORMS.items() if isinstance(form, cls))
    return {"form": name, "shape": list(form.shape), **form.fields()}, form.arrays()


def unpack(entry: dict[str, Any], arrays: dict[str, np.ndarray], where: str = "weight") -> Form:
    """The inverse of `pack`; every size is checked before use. Errors: ArtifactError."""
    cls = FORMS.get(str(entry.get("form")))
    if cls is None:
        raise ArtifactError(f"{where}: form '{entry.get('form')}' is unknown; this version reads {', '.join(FORMS)}")
    shape = entry.get("shape")
    if not (isinstance(shape, list) and len(shape) == 2 and all(isinstance(n, int) and n >= 0 for n in shape)):
        raise ArtifactError(f"{where}: shape {shape!r}; a weight has two sizes, both at least 0")
    try:
        return cls.from_arrays((shape[0], shape[1]), entry, arrays)
    except KeyError as error:
        raise ArtifactError(f"{where}: form '{entry['form']}' lacks {error}") from error
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{where}: {error}") from error
