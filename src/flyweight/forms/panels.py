"""Panels: how a matrix that is multiplied lies in the file. 16 output rows side by side, 64 bytes of a row together.

    int8     q (R, C) int8      -> (P, n, 16, 64) int8    [p, c, r, i] = q[16 p + r, 64 c + i]
    codes    (R, C), b bits     -> (P, n, 16, 64) uint8   bits [j b, j b + b) of [p, c, r, i]
                                                          = code[16 p + r, (512 / b) c + 64 j + i],  j = 0 .. 8/b - 1
    float32  W (R, C) float32   -> (P, C, 16) float32     [p, k, r] = W[16 p + r, k]

P = ceil(R / 16) panels, n = ceil(C / columns of 64 bytes) pieces a row; missing rows and columns are zeros. b is 1, 2
or 4: one shift and one mask of a piece's 64 bytes give the codes of 64 neighbouring columns. Costs at most 15 rows and
63 bytes a row of zeros. Errors: ValueError where the filling is not zero.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

PANEL_ROWS = 16
PIECE_BYTES = 64
PLANES = {1: 8, 2: 4, 4: 2}  # bits of a code -> codes a byte; other widths stay in rows

Layout = Literal["rows", "panels"]
Shape = tuple[int, ...]
Stored = dict[str, tuple[Any, Shape]]  # part of a form -> type, shape


def int8_shape(shape: tuple[int, int]) -> Shape:
    """(P, n, 16, 64) of a matrix of that shape."""
    return _ceil(shape[0], PANEL_ROWS), _ceil(shape[1], PIECE_BYTES), PANEL_ROWS, PIECE_BYTES


def codes_shape(shape: tuple[int, int], bits: int) -> Shape:
    """(P, n, 16, 64) of codes of 1, 2 or 4 bits."""
    return _ceil(shape[0], PANEL_ROWS), _ceil(shape[1], PIECE_BYTES * PLANES[bits]), PANEL_ROWS, PIECE_BYTES


def float32_shape(shape: tuple[int, int]) -> Shape:
    """(P, C, 16)."""
    return _ceil(shape[0], PANEL_ROWS), shape[1], PANEL_ROWS


def pack_int8(q: np.ndarray) -> np.ndarray:
    """(R, C) int8 -> (P, n, 16, 64) int8."""
    p, n, rows, piece = int8_shape(_two(q))
    return np.ascontiguousarray(_fill(q, p * rows, n * piece).reshape(p, rows, n, piece).transpose(0, 2, 1, 3))


def unpack_int8(panels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `pack_int8`: -> (R, C) int8."""
    p, n, rows, piece = panels.shape
    return _crop(panels.transpose(0, 2, 1, 3).reshape(p * rows, n * piece), shape)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """(R, C) uint8 below 2^bits -> (P, n, 16, 64) uint8."""
    p, n, rows, piece = codes_shape(_two(codes), bits)
    planes = _fill(codes, p * rows, n * PLANES[bits] * piece).reshape(p, rows, n, PLANES[bits], piece)
    packed = np.zeros((p, rows, n, piece), np.uint8)
    for j in range(PLANES[bits]):
        packed |= planes[:, :, :, j] << np.uint8(j * bits)
    return np.ascontiguousarray(packed.transpose(0, 2, 1, 3))


def unpack_codes(panels: np.ndarray, shape: tuple[int, int], bits: int) -> np.ndarray:
    """The inverse of `pack_codes`: -> (R, C) uint8."""
    p, n, rows, piece = panels.shape
    pieces = panels.transpose(0, 2, 1, 3)  # (P, 16, n, 64)
    planes = np.empty((p, rows, n, PLANES[bits], piece), np.uint8)
    for j in range(PLANES[bits]):
        planes[:, :, :, j] = (pieces >> np.uint8(j * bits)) & np.uint8(2**bits - 1)
    return _crop(planes.reshape(p * rows, n * PLANES[bits] * piece), shape)


def pack_float32(w: np.ndarray) -> np.ndarray:
    """(R, C) float32 -> (P, C, 16) float32."""
    p, columns, rows = float32_shape(_two(w))
    return np.ascontiguousarray(_fill(w, p * rows, columns).reshape(p, rows, columns).transpose(0, 2, 1))


def unpack_float32(panels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `pack_float32`: -> (R, C) float32."""
    p, columns, rows = panels.shape
    return _crop(panels.transpose(0, 2, 1).reshape(p * rows, columns), shape)


def _ceil(n: int, of: int) -> int:
    return (n + of - 1) // of


def _two(a: np.ndarray) -> tuple[int, int]:
    return a.shape[0], a.shape[1]


def _fill(a: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """`a` with zeros below and to the right of it."""
    filled = np.zeros((rows, columns), a.dtype)
    filled[: a.shape[0], : a.shape[1]] = a
    return filled


def _crop(filled: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """The inverse of `_fill`."""
    rows, columns = shape
    if filled[rows:].any() or filled[:rows, columns:].any():
        raise ValueError(f"panels of {rows} x {columns} weights are not filled up with zeros")
    return np.ascontiguousarray(filled[:rows, :columns])
