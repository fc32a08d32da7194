"""Plain float32 values: 4 bytes a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Float32:
    """values (R, C) float32."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def size_bytes(self) -> int:
        """Bytes stored."""
        return self.values.nbytes

    def dense(self) -> np.ndarray:
        """(R, C) float32."""
        return self.values

    def fields(self) -> dict[str, Any]:
        """Nothing beyond the shape."""
        return {}

    def arrays(self) -> dict[str, np.ndarray]:
        """What the file stores."""
        return {"values": self.values}

    @classmethod
    def from_arrays(cls, shape: tuple[int, int], entry: dict[str, Any], arrays: dict[str, np.ndarray]) -> Float32:
        """Checked inverse of `arrays`."""
        return cls(expect(arrays["values"], "values", np.float32, shape))


def expect(array: np.ndarray, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray:
    """The array, or a ValueError that says what was found and what is allowed."""
    if array.dtype != dtype or array.shape != shape:
        want = f"{np.dtype(dtype).name} {list(shape)}"
        raise ValueError(f"'{name}' is {array.dtype.name} {list(array.shape)}; it must be {want}")
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise ValueError(f"'{name}' holds NaN or infinite values; weights must be finite")
    if array.dtype == np.int8 and array.size and array.min() == -128:
        raise ValueError(f"'{name}' holds -128; int8 weights must be from -127 to 127")
    return array
