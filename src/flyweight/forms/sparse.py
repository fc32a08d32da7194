"""Sparse weights: only those that survived pruning are stored, and a bit for each weight (or block of four) says which.

    W[r, c] = values[r, c] where mask[r, c], else 0      values: float32 | int8 without shift | codes

Block 4 ("1x4"): the mask is constant on aligned groups of four columns, one bit stands for four weights; else block 1.
At most MAX_WEIGHTS are read, since few bytes of a file may unpack to many of memory.
n weights, s survivors of b bits: n / 8 (block 4: n / 32) bytes of mask and s * b / 8 bytes of survivors.

    rows     mask (R, ceil(C / 8 block)) uint8, lowest bit first; survivors (s,) in reading order, codes bit-packed
    panels   mask (16 P, n, 8 / block) uint8, the bits of 64 columns of a row together; survivors likewise, of the
             matrix filled up to 16 P rows and 64 n columns with zeros, and TAIL zero bytes, so that 64 bytes may be
             read from any of them

P = ceil(R / 16), n = ceil(C / 64). Where a row's survivors begin is no part of the file: it is counted from the mask.
Source: bitmap storage as in Han et al. 2016 (EIE), arXiv:1602.01528, with bits in place of run lengths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flyweight.errors import ConfigError
from flyweight.forms import panels
from flyweight.forms.codes import Codes, by_row, code_bits, group_rows, pack_bits, row_bytes, unpack_bits
from flyweight.forms.float32 import Float32
from flyweight.forms.int8 import Int8
from flyweight.forms.panels import PANEL_ROWS, PIECE_BYTES, PLANES, Layout, Stored

BLOCKS = (1, 4)
TAIL = 64
MAX_WEIGHTS = 2**28  # of a matrix, filling included: 256,000 tokens x 1024; an empty mask of so many has 8 MB
INNER: dict[str, type[Float32] | type[Int8] | type[Codes]] = {"float32": Float32, "int8": Int8, "codes": Codes}
SURVIVORS = {"float32": "values", "int8": "q", "codes": "codes"}  # the array of a form that holds a number a weight
_ONES = np.array([bin(i).count("1") for i in range(256)], np.uint8)


@dataclass(frozen=True)
class Sparse:
    """values: Float32, Int8 without shift, or Codes, of (R, C); mask (R, C) bool, True where the weight is there."""

    values: Float32 | Int8 | Codes
    mask: np.ndarray

    def __post_init__(self) -> None:
        if not isinstance(self.values, Float32 | Int8 | Codes) or (isinstance(self.values, Int8) and self.values.shift):
            raise ConfigError(f"sparse weights of {_named(self.values)}; allowed: float32, int8 without shift, codes")
        if self.mask.dtype != np.bool_ or self.mask.shape != self.values.shape:
            found = f"{self.mask.dtype} {list(self.mask.shape)}"
            raise ConfigError(f"a mask of {found}; it must be bool {list(self.values.shape)}, as the weights")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.values.shape

    @property
    def bits(self) -> int:
        """Bits of a survivor."""
        return self.values.bits

    @property
    def block(self) -> int:
        """4 when the mask is constant on aligned groups of four columns (the last may be short), else 1."""
        rows, columns = self.shape
        short = columns % 4
        whole = self.mask[:, : columns - short].reshape(rows, columns // 4, 4)
        last = self.mask[:, columns - short :]
        blocks = (whole == whole[:, :, :1]).all() and (not short or (last == last[:, :1]).all())
        return 4 if blocks else 1

    @property
    def density(self) -> float:
        """Share of weights that survived; 0 without weights."""
        return float(self.mask.mean()) if self.mask.size else 0.0

    @property
    def scale(self) -> np.ndarray | None:
        """Scales of int8 values, None of floats."""
        return None if isinstance(self.values, Float32) else self.values.scale

    @property
    def size_bytes(self) -> int:
        """Bytes stored in rows."""
        return sum(a.nbytes for a in self.arrays().values())

    def dense(self) -> np.ndarray:
        """(R, C) float32, 0 where the mask is False."""
        return np.where(self.mask, self.values.dense(), np.float32(0))

    def integers(self) -> np.ndarray:
        """(R, C) int8: what the engine multiplies. Needs int8 values or an int8 table."""
        assert not isinstance(self.values, Float32)
        return np.where(
            self.mask, self.values.q if isinstance(self.values, Int8) else self.values.integers(), np.int8(0)
        )

    def densified(self) -> Float32 | Int8 | Codes | None:
        """The same weights, bit for bit, in a form that stores the zeros too; None for codes where no centre is 0."""
        if isinstance(self.values, Float32):
            return Float32(self.dense())
        if isinstance(self.values, Int8):
            return replace(self.values, q=self.integers())
        zero = self.values.table == 0  # (R or 1, k)
        if not (zero.any(axis=1, keepdims=True) | self.mask.all(axis=1, keepdims=True)).all():
            return None
        at = zero.argmax(axis=1, keepdims=True).astype(np.uint8)
        return replace(self.values, codes=np.where(self.mask, self.values.codes, at))

    def in_blocks(self) -> Sparse | None:
        """The same int8 weights, bit for bit, whole groups of four survive: zeros beside a survivor are stored.

        None for float32 and codes: no centre may be 0.
        """
        if not isinstance(self.values, Int8):
            return None
        rows, columns = self.shape
        groups = np.pad(self.mask, ((0, 0), (0, -columns % 4))).reshape(rows, -1, 4).any(axis=2)
        return Sparse(replace(self.values, q=self.integers()), np.repeat(groups, 4, axis=1)[:, :columns])

    def fields(self) -> dict[str, Any]:
        """The mask's block, and the entry of the values without their shape."""
        name = next(name for name, cls in INNER.items() if isinstance(self.values, cls))
        return {"block": self.block, "values": {"form": name, **self.values.fields()}}

    def arrays(self, layout: Layout = "rows") -> dict[str, np.ndarray]:
        """What the file stores: mask, survivors, and the values' tables and scales."""
        mask, part, block = self.mask, SURVIVORS[self.fields()["values"]["form"]], self.block
        rest = {k: a for k, a in self.values.arrays().items() if k != part}
        weights = self._weights()
        if layout == "panels":
            weights, mask = _filled(weights), _filled(_whole_blocks(mask, block))
        survivors = weights[mask]
        if isinstance(self.values, Codes):
            survivors = pack_bits(survivors[None], self.bits)[0]
        if layout == "panels":
            survivors = np.concatenate([survivors, np.zeros(TAIL, survivors.dtype)])
        packed = np.packbits(mask[:, ::block], axis=1, bitorder="little")
        return {"mask": packed.reshape(mask_shape(self.shape, block, layout)), part: survivors, **rest}

    def _weights(self) -> np.ndarray:
        """The number that is stored a weight, (R, C)."""
        if isinstance(self.values, Codes):
            return self.values.codes
        return self.values.q if isinstance(self.values, Int8) else self.values.values

    @staticmethod
    def stored(shape: tuple[int, int], entry: dict[str, Any], layout: Layout, arrays: dict[str, np.ndarray]) -> Stored:
        """Type and shape of what `arrays` gives; the mask says how many survivors, so it is looked at, too."""
        inner, block = entry["values"], entry["block"]
        if (
            not isinstance(inner, dict)
            or inner.get("form") not in INNER
            or type(block) is not int
            or block not in BLOCKS
        ):
            raise ValueError(f"sparse entry {entry}; allowed: block 1 or 4, values of float32, int8 or codes")
        if inner["form"] == "int8" and inner["shift"] != 0:
            raise ValueError(f"sparse int8 values with shift={inner['shift']!r}; allowed: 0")
        if layout == "panels" and inner["form"] == "float32":
            raise ValueError("sparse float32 values lie in panels; allowed there: int8 and codes")
        stored = INNER[inner["form"]].stored(shape, inner, "rows")
        part = SURVIVORS[inner["form"]]
        bits = code_bits(inner["centres"]) if inner["form"] == "codes" else 8
        if layout == "panels" and inner["form"] == "codes" and not (inner["table"] == "int8" and bits in PLANES):
            raise ValueError(
                f"{inner['centres']} {inner['table']} centres lie in panels; allowed there: 2 to 4 or 9 to 16, int8"
            )
        lie, mask = mask_shape(shape, block, layout), arrays["mask"]
        if math.prod(lie) * 8 * block > MAX_WEIGHTS:
            raise ValueError(
                f"{shape[0]} x {shape[1]} sparse weights; at most {MAX_WEIGHTS} are read, filling included"
            )
        n = 0  # of a mask that is refused, since it is looked at first
        if mask.dtype == np.uint8 and mask.shape == lie:
            n = count(mask, shape, block, layout)
        if inner["form"] == "codes":
            n = row_bytes(n, bits)
        found: Stored = {"mask": (np.uint8, lie), part: (stored[part][0], (n + (TAIL if layout == "panels" else 0),))}
        return found | {k: v for k, v in stored.items() if k != part}

    @classmethod
    def from_arrays(
        cls, shape: tuple[int, int], entry: dict[str, Any], arrays: dict[str, np.ndarray], layout: Layout
    ) -> Sparse:
        """The inverse of `arrays`, whose sizes fit `stored`; a code beyond the table is refused."""
        inner, block = entry["values"] | {"shape": list(shape)}, entry["block"]
        mask = unpack_mask(arrays["mask"], shape, block)
        whole = _filled(_whole_blocks(mask, block)) if layout == "panels" else mask
        n, survivors = int(whole.sum()), arrays[SURVIVORS[inner["form"]]]
        if layout == "panels" and survivors[-TAIL:].any():
            raise ValueError(f"{TAIL} zero bytes must follow the survivors")
        if inner["form"] == "codes":
            survivors = unpack_bits(survivors[None], n, code_bits(inner["centres"]))[0]
            if n and int(survivors.max()) >= inner["centres"]:
                raise ValueError(f"code {int(survivors.max())} beyond a table of {inner['centres']} centres")
        weights = np.zeros(whole.shape, survivors.dtype)
        weights[whole] = survivors[:n]
        weights = np.ascontiguousarray(weights[: shape[0], : shape[1]])
        if inner["form"] == "float32":
            return cls(Float32(weights), mask)
        if inner["form"] == "int8":
            return cls(Int8(weights, arrays["scale"]), mask)
        scale = by_row(inner, arrays["scale"]) if "scale" in arrays else None
        return cls(Codes(weights, by_row(inner, arrays["table"]), scale, group_rows(inner) or 1), mask)


def mask_shape(shape: tuple[int, int], block: int, layout: Layout) -> tuple[int, ...]:
    """(R, ceil(C / 8 block)), in panels (16 P, n, 8 / block)."""
    if layout == "rows":
        return shape[0], -(-shape[1] // (8 * block))
    n_panels, n_pieces, rows, _ = panels.int8_shape(shape)
    return n_panels * rows, n_pieces, PIECE_BYTES // 8 // block


def unpack_mask(packed: np.ndarray, shape: tuple[int, int], block: int) -> np.ndarray:
    """Packed bits of that shape -> (R, C) bool."""
    rows, columns = shape
    flags = np.unpackbits(_by_row(packed)[:rows], axis=1, count=-(-columns // block), bitorder="little").view(np.bool_)
    return flags if block == 1 else np.ascontiguousarray(np.repeat(flags, block, axis=1)[:, :columns])


def count(packed: np.ndarray, shape: tuple[int, int], block: int, layout: Layout) -> int:
    """Survivors that a mask stands for, those in the filling of the last block of a row in panels among them.

    Errors: ValueError where bits beyond the matrix are set.
    """
    rows, columns = shape
    bits = _by_row(packed)
    n_bits = -(-columns // block)
    beyond = bits[:rows, n_bits // 8 :]
    if bits[rows:].any() or beyond[:, 1:].any() or (beyond[:, :1] >> np.uint8(n_bits % 8)).any():
        raise ValueError(f"'mask' has bits beyond the {rows} x {columns} weights; they must be zero")
    n = int(_ONES[bits].sum(dtype=np.int64)) * block
    if layout == "rows" and columns % block:  # the last block of a row is shorter
        last = bits[:, (n_bits - 1) // 8] >> np.uint8((n_bits - 1) % 8) & np.uint8(1)
        n -= int(last.sum(dtype=np.int64)) * (block - columns % block)
    return n


def _by_row(packed: np.ndarray) -> np.ndarray:
    """A packed mask as (R or 16 P, bytes of a row)."""
    return packed.reshape(packed.shape[0], math.prod(packed.shape[1:]))


def _whole_blocks(mask: np.ndarray, block: int) -> np.ndarray:
    """A mask whose last, short block of each row is filled up as its first column says."""
    more = -mask.shape[1] % block
    return np.concatenate([mask, np.repeat(mask[:, -1:], more, axis=1)], axis=1) if more else mask


def _filled(a: np.ndarray) -> np.ndarray:
    """`a` with zeros up to whole panels and pieces."""
    more = -a.shape[0] % PANEL_ROWS, -a.shape[1] % PIECE_BYTES
    return np.pad(a, ((0, more[0]), (0, more[1]))) if any(more) else a


def _named(values: Any) -> str:
    """What was found in place of values."""
    return f"int8 with shift {values.shift}" if isinstance(values, Int8) else type(values).__name__
