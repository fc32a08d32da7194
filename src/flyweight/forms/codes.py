"""k-means codes: each weight is an index of a few bits into a small table of centres.

    W[r, c] ~ table[r, codes[r, c]]                   float32 table: looked up (embeddings, float activations)
    W[r, c] ~ table[r, codes[r, c]] * scale[r]        int8 table: the engine multiplies int8 centres by int8 activations

A whole-matrix codebook is one shared table row; a group of neighbouring rows may share a table, which the file stores
once. n weights, k centres, b = ceil(log2 k) bits: n * b / 8 bytes of codes and, for int8 tables, k + 4 bytes a table.
Source: Han et al. 2015, arXiv:1510.00149.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flyweight.forms import panels
from flyweight.forms.int8 import LIMIT
from flyweight.forms.panels import Layout, Stored

MAX_CENTRES = 256


@dataclass(frozen=True)
class Codes:
    """codes (R, C) uint8, below k; table (R or 1, k) int8 or float32; scale (R or 1,) float32 for int8 tables.

    group: rows 0 .. group - 1 have one table, so do the next ones, and so on: table and scale repeat it for every row,
    the file stores it once.
    """

    codes: np.ndarray
    table: np.ndarray
    scale: np.ndarray | None = None
    group: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def bits(self) -> int:
        """ceil(log2 k): bits a code takes on disk."""
        return code_bits(self.table.shape[1])

    @property
    def size_bytes(self) -> int:
        """Bytes stored in rows."""
        return sum(a.nbytes for a in self.arrays().values())

    def dense(self) -> np.ndarray:
        """(R, C) float32."""
        table = self.table.astype(np.float32)
        if self.scale is not None:
            table = table * self.scale[:, None]
        if table.shape[0] == 1:
            return table[0][self.codes]
        return np.take_along_axis(table, self.codes.astype(np.int64), axis=1)

    def integers(self) -> np.ndarray:
        """The int8 centre of every weight, (R, C) int8: what the engine multiplies. Needs an int8 table."""
        if self.table.shape[0] == 1:
            return self.table[0][self.codes]
        return np.take_along_axis(self.table, self.codes.astype(np.int64), axis=1)

    def fields(self) -> dict[str, Any]:
        """Number of centres, table granularity and type."""
        found = {"centres": self.table.shape[1], "table": "float32" if self.scale is None else "int8"}
        if self.group > 1:
            return found | {"per": "group", "rows": self.group}
        return found | {"per": "matrix" if self.table.shape[0] == 1 != self.shape[0] else "row"}

    def arrays(self, layout: Layout = "rows") -> dict[str, np.ndarray]:
        """What the file stores: codes bit-packed, row by row or in panels."""
        packed = pack_bits(self.codes, self.bits) if layout == "rows" else panels.pack_codes(self.codes, self.bits)
        stored = {"codes": packed, "table": self.table[:: self.group]}
        return stored if self.scale is None else stored | {"scale": self.scale[:: self.group]}

    @staticmethod
    def stored(shape: tuple[int, int], entry: dict[str, Any], layout: Layout) -> Stored:
        """Type and shape of what `arrays` gives; number and type of the centres are checked."""
        k, group = entry["centres"], group_rows(entry)
        if group and not (type(group) is int and 2 <= group < shape[0]):
            raise ValueError(f"a table for every {group!r} rows; allowed: whole numbers from 2 to below {shape[0]}")
        n_tables = -(-shape[0] // group) if group else {"row": shape[0], "matrix": 1}.get(entry["per"], -1)
        integer = entry["table"] == "int8"
        if (
            type(k) is not int
            or not 2 <= k <= MAX_CENTRES
            or n_tables < 0
            or not (integer or entry["table"] == "float32")
        ):
            raise ValueError(
                f"codes entry {entry}; allowed: 2 to {MAX_CENTRES} centres, per row, group or matrix, int8 or float32"
            )
        bits = code_bits(k)
        if layout == "panels" and not (integer and bits in panels.PLANES):
            raise ValueError(f"{k} {entry['table']} centres lie in panels; allowed there: 2 to 4 or 9 to 16, int8")
        lie = (shape[0], row_bytes(shape[1], bits)) if layout == "rows" else panels.codes_shape(shape, bits)
        stored: Stored = {"codes": (np.uint8, lie), "table": (np.int8 if integer else np.float32, (n_tables, k))}
        return stored | {"scale": (np.float32, (n_tables,))} if integer else stored

    @classmethod
    def from_arrays(
        cls, shape: tuple[int, int], entry: dict[str, Any], arrays: dict[str, np.ndarray], layout: Layout
    ) -> Codes:
        """The inverse of `arrays`, whose sizes fit `stored`; a code beyond the table is refused."""
        k, packed = entry["centres"], arrays["codes"]
        bits = code_bits(k)
        codes = unpack_bits(packed, shape[1], bits) if layout == "rows" else panels.unpack_codes(packed, shape, bits)
        if codes.size and int(codes.max()) >= k:
            raise ValueError(f"code {int(codes.max())} beyond a table of {k} centres")
        scale = arrays.get("scale")
        scale = None if scale is None else by_row(entry, scale)
        return cls(codes, by_row(entry, arrays["table"]), scale, group_rows(entry) or 1)


def group_rows(entry: dict[str, Any]) -> Any:
    """How many rows share a table, as a manifest entry says it; 0 where tables are a row's or the matrix's."""
    return entry["rows"] if entry.get("per") == "group" else 0


def by_row(entry: dict[str, Any], stored: np.ndarray) -> np.ndarray:
    """Tables or scales as stored, repeated so that every row of a group has them; others as they are."""
    group = group_rows(entry)
    return np.repeat(stored, group, axis=0)[: entry["shape"][0]] if group else stored


def code_bits(n_centres: int) -> int:
    """ceil(log2 n): 2 -> 1, 3..4 -> 2, 5..8 -> 3, 16 -> 4, 256 -> 8."""
    return max(1, (n_centres - 1).bit_length())


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of one packed row; rows begin on byte borders."""
    return (columns * bits + 7) // 8


def pack_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """(R, C) uint8 below 2^bits -> (R, ceil(C * bits / 8)) uint8, lowest bit first."""
    if bits == 8:
        return codes
    rows, columns = codes.shape
    flags = np.unpackbits(codes[:, :, None], axis=2, count=bits, bitorder="little")  # (R, C, bits)
    return np.packbits(flags.reshape(rows, columns * bits), axis=1, bitorder="little")


def unpack_bits(packed: np.ndarray, columns: int, bits: int) -> np.ndarray:
    """The inverse of `pack_bits`: -> (R, columns) uint8."""
    if bits == 8:
        return packed
    flags = np.unpackbits(packed, axis=1, count=columns * bits, bitorder="little").reshape(len(packed), columns, bits)
    return np.packbits(flags, axis=2, bitorder="little")[:, :, 0]


def codes_from_centres(w: np.ndarray, centres: np.ndarray, integer: bool, group: int = 1) -> Codes:
    """Give every weight its nearest centre. w (R, C) float32, centres (R, ceil(R / group) or 1, k) -> Codes.

    integer: centres are first rounded to an int8 grid of their own. group: rows that share a table.
    """
    table, scale = tables(centres, integer, group, len(w))
    return Codes(nearest(w, table if scale is None else table * scale[:, None]), table, scale, group)


def tables(centres: np.ndarray, integer: bool, group: int, n_rows: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Sorted centres as they are stored, and for int8 centres their scale, max|centre| / 127; of every row.

    centres (R, ceil(R / group) or 1, k) -> table (R or 1, k) int8 or float32, scale (R or 1,) float32 or None.
    """
    centres = np.sort(centres, axis=1).astype(np.float32)
    if group > 1:
        centres = np.repeat(centres, group, axis=0)[:n_rows]
    if not integer:
        return centres, None
    absmax = np.abs(centres).max(axis=1)
    scale = np.where(absmax >= 2.0**-100, absmax / np.float32(LIMIT), np.float32(0)).astype(np.float32)
    inv = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale > 0)
    return np.clip(np.rint(centres * inv[:, None]), -LIMIT, LIMIT).astype(np.int8), scale


def nearest(w: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Index of the nearest centre, centres sorted in each row; a tie takes the lower index. (R, C) uint8."""
    edges = (centres[:, 1:] + centres[:, :-1]) / 2  # (R or 1, k - 1)
    if len(edges) == 1:
        return np.searchsorted(edges[0], w.ravel(), side="left").reshape(w.shape).astype(np.uint8)
    codes = np.zeros(w.shape, np.uint8)
    if edges.shape[1] <= 32:
        for j in range(edges.shape[1]):
            codes += w > edges[:, j : j + 1]
        return codes
    for r in range(len(w)):
        codes[r] = np.searchsorted(edges[r], w[r], side="left")
    return codes
