"""Panels: every byte written out by hand, the way back for any size, and filling that is not zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flyweight.forms import describe, multiplied_layout, panels
from flyweight.forms.codes import Codes
from flyweight.forms.float32 import Float32
from flyweight.forms.int8 import int8_matrix, int8_rows

shapes = st.tuples(st.integers(0, 35), st.integers(0, 140))
Z = bytes


def test_int8_by_hand() -> None:
    """17 rows of 66: two panels of two pieces; row 0 lies at bytes 0..63, its last two weights begin piece 1."""
    q = np.zeros((17, 66), np.int8)
    q[0, :3], q[0, 63:], q[1, 0], q[15, 65], q[16, 64] = [1, 2, -3], [4, 5, -6], 7, 8, -9
    found = panels.pack_int8(q)
    assert (found.shape, found.dtype) == ((2, 2, 16, 64), np.int8)
    rows = [
        # panel 0, columns 0..63
        b"\1\2\xfd" + Z(60) + b"\4", b"\7" + Z(63), *[Z(64)] * 14,
        # panel 0, columns 64, 65 and 62 zeros
        b"\5\xfa" + Z(62), *[Z(64)] * 14, b"\0\x08" + Z(62),
        # panel 1: row 16 and 15 rows of zeros
        *[Z(64)] * 16,
        b"\xf7" + Z(63), *[Z(64)] * 15,
    ]  # fmt: skip
    assert found.tobytes() == b"".join(rows)


@pytest.mark.parametrize(
    ("bits", "columns", "piece"),
    [
        # columns 0, 64 in the low and high half of byte 0; 1, 65 of byte 1
        (4, {0: 0x1, 64: 0xA, 1: 0xF, 65: 0x2, 127: 0xC}, b"\xa1\x2f" + Z(61) + b"\xc0"),
        # columns 0, 64, 128, 192 from the low to the high two bits of byte 0
        (2, {0: 1, 64: 2, 128: 3, 192: 0, 1: 3, 193: 2, 255: 1}, b"\x39\x83" + Z(61) + b"\x40"),
        # columns 0, 64, ..., 448 are the bits of byte 0
        (1, {0: 1, 64: 0, 128: 1, 448: 1, 63: 1, 511: 1}, b"\x85" + Z(62) + b"\x81"),
    ],
)
def test_codes_by_hand(bits: int, columns: dict[int, int], piece: bytes) -> None:
    """Row 2 of 3 holds the given codes; one more column opens a second piece."""
    codes = np.zeros((3, 512 // bits + 1), np.uint8)
    for column, code in columns.items():
        codes[2, column] = code
    codes[1, 512 // bits] = 1
    found = panels.pack_codes(codes, bits)
    assert (found.shape, found.dtype) == ((1, 2, 16, 64), np.uint8)
    assert found.tobytes() == Z(2 * 64) + piece + Z(13 * 64) + Z(64) + b"\1" + Z(63) + Z(14 * 64)


def test_float32_by_hand() -> None:
    """17 rows of 2: column after column, 16 rows together."""
    w = np.arange(34, dtype=np.float32).reshape(17, 2)
    found = panels.pack_float32(w)
    assert (found.shape, found.dtype) == ((2, 2, 16), np.float32)
    even, odd = [float(2 * r) for r in range(16)], [float(2 * r + 1) for r in range(16)]
    assert found.ravel().tolist() == [*even, *odd, 32.0, *[0.0] * 15, 33.0, *[0.0] * 15]


@given(shapes, st.integers(0, 2**32))
def test_int8_and_float32_there_and_back(shape: tuple[int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, w = rng.integers(-127, 128, shape).astype(np.int8), rng.normal(size=shape).astype(np.float32)
    packed = panels.pack_int8(q)
    assert packed.shape == panels.int8_shape(shape)
    assert packed.flags.c_contiguous
    assert np.array_equal(panels.unpack_int8(packed, shape), q)
    for r, c in zip(*np.nonzero(q), strict=True):  # the formula of the module, read literally
        assert packed[r // 16, c // 64, r % 16, c % 64] == q[r, c]
    packed = panels.pack_float32(w)
    assert packed.shape == panels.float32_shape(shape)
    assert packed.flags.c_contiguous
    assert np.array_equal(panels.unpack_float32(packed, shape), w)
    for r, c in zip(*np.nonzero(w), strict=True):
        assert packed[r // 16, c, r % 16] == w[r, c]


@given(st.tuples(st.integers(0, 18), st.integers(0, 600)), st.sampled_from([1, 2, 4]), st.integers(0, 2**32))
def test_codes_there_and_back(shape: tuple[int, int], bits: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8)
    packed = panels.pack_codes(codes, bits)
    assert packed.shape == panels.codes_shape(shape, bits)
    assert packed.flags.c_contiguous
    assert np.array_equal(panels.unpack_codes(packed, shape, bits), codes)
    span = 512 // bits
    for r in range(shape[0]):
        for c in range(0, shape[1], 7):
            byte = int(packed[r // 16, c // span, r % 16, c % span % 64])
            assert byte >> (c % span // 64 * bits) & (2**bits - 1) == codes[r, c]


@pytest.mark.parametrize("at", [(1, 0, 4, 0), (0, 1, 0, 6), (0, 1, 3, 63), (1, 1, 15, 63)])
def test_filling_that_is_not_zero(at: tuple[int, ...]) -> None:
    """20 rows of 70: the filling is rows 20..31 and columns 70..127."""
    packed = panels.pack_int8(np.ones((20, 70), np.int8))
    packed[at] = 1
    with pytest.raises(ValueError, match="panels of 20 x 70 weights are not filled up with zeros"):
        panels.unpack_int8(packed, (20, 70))
    codes = panels.pack_codes(np.ones((20, 70), np.uint8), 4)
    codes[1, 0, 0, 6] |= 0x10  # column 70 of row 16
    with pytest.raises(ValueError, match="not filled up"):
        panels.unpack_codes(codes, (20, 70), 4)
    floats = panels.pack_float32(np.ones((20, 70), np.float32))
    floats[1, 69, 4] = np.nan  # row 20
    with pytest.raises(ValueError, match="not filled up"):
        panels.unpack_float32(floats, (20, 70))


def codes_of(n_centres: int, integer: bool) -> Codes:
    scale = np.ones(1, np.float32) if integer else None
    return Codes(np.zeros((2, 3), np.uint8), np.zeros((1, n_centres), np.int8 if integer else np.float32), scale)


W = np.ones((2, 3), np.float32)
LIE: list[tuple[Callable[[], object], str, str]] = [
    (lambda: Float32(W), "float", "panels"),
    (lambda: int8_rows(W), "int8", "panels"),
    (lambda: int8_matrix(W), "int8", "panels"),
    (lambda: int8_rows(W), "float", "rows"),
    *((lambda k=k: codes_of(k, True), "int8", "panels") for k in (2, 3, 4, 9, 16)),
    *((lambda k=k: codes_of(k, True), "int8", "rows") for k in (5, 8, 17, 100, 256)),
    *((lambda k=k, i=i: codes_of(k, i), "float", "rows") for k in (2, 16, 256) for i in (True, False)),
]


@pytest.mark.parametrize(("make", "activations", "layout"), LIE)
def test_what_lies_in_panels(make: Callable[[], object], activations: str, layout: str) -> None:
    """What the engine multiplies without converting it, and nothing else."""
    assert multiplied_layout(describe(make()), activations) == layout  # type: ignore[arg-type]
