"""8-bit weights: one scale a row, or the whole matrix with one scale and shift.

per row     scale[r] = max|W[r, :]| / 127                    q = round(W / scale)           W ~ q * scale
per matrix  scale = (max(W, 0) - min(W, 0)) / 254, shift integer
                                                             q = round(W / scale + shift)   W ~ (q - shift) * scale

round is to nearest even, q in [-127, 127]; |W - dense| <= scale / 2 (per matrix: scale, since the shift is rounded).
Sources: per row, Bhandare et al. 2019, arXiv:1906.00532; scale and shift, Jacob et al. 2017, arXiv:1712.05877.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flyweight.forms import panels
from flyweight.forms.panels import Layout, Stored

LIMIT = 127  # symmetric: -128 is never used, so 2 * 127 * 127 fits the int16 sums of AVX2's sign trick


@dataclass(frozen=True)
class Int8:
    """q (R, C) int8; scale (R,) or (1,) float32; shift an integer, 0 when symmetric."""

    q: np.ndarray
    scale: np.ndarray
    shift: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.q.shape[0], self.q.shape[1]

    @property
    def size_bytes(self) -> int:
        """Bytes stored in rows."""
        return self.q.nbytes + self.scale.nbytes

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return 8

    def dense(self) -> np.ndarray:
        """(q - shift) * scale, (R, C) float32."""
        return (self.q.astype(np.float32) - np.float32(self.shift)) * self.scale[:, None]

    def fields(self) -> dict[str, Any]:
        """Granularity and shift."""
        return {"per": "matrix" if self.scale.shape[0] == 1 != self.shape[0] else "row", "shift": self.shift}

    def arrays(self, layout: Layout = "rows") -> dict[str, np.ndarray]:
        """What the file stores."""
        return {"q": self.q if layout == "rows" else panels.pack_int8(self.q), "scale": self.scale}

    @staticmethod
    def stored(shape: tuple[int, int], entry: dict[str, Any], layout: Layout) -> Stored:
        """Type and shape of what `arrays` gives; granularity and shift are checked."""
        n_scales = {"row": shape[0], "matrix": 1}.get(entry["per"], -1)
        shift = entry["shift"]
        if n_scales < 0 or type(shift) is not int or abs(shift) > LIMIT:
            raise ValueError(f"per={entry['per']!r}, shift={shift!r}; allowed: row or matrix, an integer in +-127")
        return {
            "q": (np.int8, shape if layout == "rows" else panels.int8_shape(shape)),
            "scale": (np.float32, (n_scales,)),
        }

    @classmethod
    def from_arrays(
        cls, shape: tuple[int, int], entry: dict[str, Any], arrays: dict[str, np.ndarray], layout: Layout
    ) -> Int8:
        """The inverse of `arrays`, whose sizes fit `stored`."""
        q = arrays["q"] if layout == "rows" else panels.unpack_int8(arrays["q"], shape)
        return cls(q, arrays["scale"], entry["shift"])


def int8_rows(w: np.ndarray) -> Int8:
    """Symmetric int8 with one scale a row: the better default. w (R, C) float32."""
    absmax = np.abs(w).max(axis=1, initial=0.0).astype(np.float32)
    inv = np.divide(np.float32(LIMIT), absmax, out=np.zeros_like(absmax), where=absmax >= 2.0**-100)
    q = np.clip(np.rint(w * inv[:, None]), -LIMIT, LIMIT).astype(np.int8)
    return Int8(q, np.where(inv > 0, absmax / np.float32(LIMIT), np.float32(0)).astype(np.float32))


def int8_matrix(w: np.ndarray) -> Int8:
    """W8 = W32 / scale + shift for the whole matrix: the founding experiment's form. w (R, C) float32.

    The range always includes 0, so that 0 is represented exactly.
    """
    scale, shift = matrix_steps(float(w.min(initial=0.0)), float(w.max(initial=0.0)))
    if not scale:
        return Int8(np.zeros(w.shape, np.int8), np.zeros(1, np.float32))
    q = np.clip(np.rint(w / scale + np.float32(shift)), -LIMIT, LIMIT).astype(np.int8)
    return Int8(q, np.array([scale], np.float32), shift)


def matrix_steps(low: float, high: float) -> tuple[np.float32, int]:
    """Scale and shift of a matrix with values from low to high; scale 0 where all are nearly 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / (2 * LIMIT))
    if scale < 2.0**-100:
        return np.float32(0), 0
    return scale, int(np.clip(np.rint(-LIMIT - low / scale), -LIMIT, LIMIT))
