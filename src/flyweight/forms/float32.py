"""Plain float32 values: 4 bytes a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flyweight.forms import panels
from flyweight.forms.panels import Layout, Stored


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
        """Bytes stored in rows."""
        return self.values.nbytes

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return 32

    def dense(self) -> np.ndarray:
        """(R, C) float32."""
        return self.values

    def fields(self) -> dict[str, Any]:
        """Nothing beyond the shape."""
        return {}

    def arrays(self, layout: Layout = "rows") -> dict[str, np.ndarray]:
        """What the file stores."""
        return {"values": self.values if layout == "rows" else panels.pack_float32(self.values)}

    @staticmethod
    def stored(shape: tuple[int, int], entry: dict[str, Any], layout: Layout) -> Stored:
        """Type and shape of what `arrays` gives."""
        return {"values": (np.float32, shape if layout == "rows" else panels.float32_shape(shape))}

    @classmethod
    def from_arrays(
        cls, shape: tuple[int, int], entry: dict[str, Any], arrays: dict[str, np.ndarray], layout: Layout
    ) -> Float32:
        """The inverse of `arrays`, whose sizes fit `stored`."""
        values = arrays["values"]
        return cls(values if layout == "rows" else panels.unpack_float32(values, shape))
