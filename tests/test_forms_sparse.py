"""Sparse forms: bytes worked out by hand, the way back for any mask, and files that must be refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flyweight.errors import ArtifactError, ConfigError
from flyweight.forms import Codes, Float32, Int8, Layout, Sparse, check, multiplied_layout, pack, unpack
from flyweight.forms.codes import codes_from_centres
from flyweight.forms.int8 import int8_matrix, int8_rows
from flyweight.forms.sparse import TAIL

Z = bytes
VALUES = ["float32", "int8 row", "int8 matrix"]
VALUES += [
    f"codes {t} {per} {k}" for t in ("int8", "float32") for per in ("row", "group", "matrix") for k in (2, 3, 16, 100)
]


def values(kind: str, rows: int, columns: int) -> Float32 | Int8 | Codes:
    """Weights of each kind, without a shift."""
    w = np.random.default_rng([rows, columns]).normal(size=(rows, columns)).astype(np.float32)
    if kind == "float32":
        return Float32(w)
    if kind == "int8 row":
        return int8_rows(w)
    if kind == "int8 matrix":
        return Int8(int8_rows(w).q, np.array([0.5], np.float32))
    _, table, per, k = kind.split()
    group = 2 if per == "group" and rows > 2 else 1
    centres = np.sort(
        np.random.default_rng(1).normal(size=(1 if per == "matrix" else -(-rows // group), int(k))), axis=1
    )
    return codes_from_centres(w, centres, table == "int8", group)


def random_mask(rows: int, columns: int, block: int, keep: float) -> np.ndarray:
    """True for a share of the weights, or of the blocks of four."""
    drawn = np.random.default_rng([rows, columns, block]).random((rows, -(-columns // block))) < keep
    return np.repeat(drawn, block, axis=1)[:, :columns]


def layouts(entry: dict[str, Any]) -> list[Layout]:
    return ["rows", "panels"] if multiplied_layout(entry, "int8") == "panels" else ["rows"]


# bytes by hand ------------------------------------------------------------------------------------------------------


def test_int8_in_rows_by_hand() -> None:
    q = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 9], [-1, -2, -3, -4, -5, -6, -7, -8, -9]], np.int8)
    mask = np.zeros((2, 9), bool)
    mask[0, [0, 3, 8]] = mask[1, 1] = True
    entry, arrays = pack(Sparse(Int8(q, np.array([0.5, 2], np.float32)), mask))
    assert entry == {
        "form": "sparse",
        "shape": [2, 9],
        "block": 1,
        "values": {"form": "int8", "per": "row", "shift": 0},
    }
    assert {k: a.tolist() for k, a in arrays.items()} == {
        "mask": [[0b00001001, 0b1], [0b00000010, 0]],
        "q": [1, 4, 9, -2],
        "scale": [0.5, 2],
    }
    dense = [[0.5, 0, 0, 2, 0, 0, 0, 0, 4.5], [0, -4, 0, 0, 0, 0, 0, 0, 0]]
    assert unpack(entry, arrays).dense().tolist() == dense
    assert Sparse(Int8(q, np.array([0.5, 2], np.float32)), mask).size_bytes == 4 + 4 + 8


def test_blocks_of_four_by_hand() -> None:
    """Six columns: a block of four and a short one; in panels the short one is filled up with two zeros."""
    q = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]], np.int8)
    mask = np.array([[0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0]], bool)
    form = Sparse(Int8(q, np.ones(2, np.float32)), mask)
    assert form.block == 4
    rows, lie = form.arrays(), form.arrays("panels")
    assert (rows["mask"].tolist(), rows["q"].tolist()) == ([[0b10], [0b01]], [5, 6, 7, 8, 9, 10])
    assert lie["mask"].tobytes() == b"\2\0" + b"\1\0" + Z(14 * 2)
    assert (lie["mask"].shape, lie["mask"].dtype) == ((16, 1, 2), np.uint8)
    assert lie["q"].tolist() == [5, 6, 0, 0, 7, 8, 9, 10] + [0] * TAIL


def test_int8_in_panels_by_hand() -> None:
    """17 rows of 66: 32 rows of two masks of 64 bits; survivors row after row."""
    q = np.zeros((17, 66), np.int8)
    q[0, 0], q[0, 63], q[0, 65], q[2, 9], q[16, 64] = 1, 2, 3, -4, 5
    lie = Sparse(Int8(q, np.ones(17, np.float32)), q != 0).arrays("panels")
    assert lie["mask"].shape == (32, 2, 8)
    row_0, row_2, row_16 = b"\1" + Z(6) + b"\x80\2" + Z(7), b"\0\2" + Z(14), Z(8) + b"\1" + Z(7)
    assert lie["mask"].tobytes() == row_0 + Z(16) + row_2 + Z(13 * 16) + row_16 + Z(15 * 16)
    assert lie["q"].tolist() == [1, 2, 3, -4, 5] + [0] * TAIL


@pytest.mark.parametrize(
    ("k", "packed"),
    [(2, [0b1101]), (4, [0b11_10_01_11, 0b00]), (16, [0xB7, 0xE1, 0x4])],  # 1 0 1 1 | 3 1 2 3 0 | 7 B 1 E 4
)
def test_codes_are_one_stream_of_bits(k: int, packed: list[int]) -> None:
    """Survivors follow one another without regard to rows and bytes, in both layouts."""
    survivors = {2: [1, 0, 1, 1], 4: [3, 1, 2, 3, 0], 16: [7, 11, 1, 14, 4]}[k]
    mask = np.zeros((3, 7), bool)
    mask.ravel()[[0, 5, 6, 8, 20][: len(survivors)]] = True
    codes = np.ones((3, 7), np.uint8)
    codes[mask] = survivors
    form = Sparse(Codes(codes, np.arange(k, dtype=np.int8)[None], np.ones(1, np.float32)), mask)
    assert form.arrays()["codes"].tolist() == packed
    assert form.arrays("panels")["codes"].tolist() == packed + [0] * TAIL
    assert form.integers()[mask].tolist() == survivors
    assert not form.integers()[~mask].any()  # though no centre of the others is 0


# the form -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "block"),
    [
        ([[1, 1, 1, 1, 0, 0, 0, 0]], 4),
        ([[1, 1, 1, 1, 0, 0]], 4),
        ([[1, 1, 1, 1, 0, 1]], 1),
        ([[0, 1, 1, 1, 1, 0, 0, 0]], 1),  # four in a row, but not aligned
        ([[1, 1, 1]], 4),
        ([[1, 0, 1]], 1),
        ([[1, 1, 1, 1], [1, 1, 1, 0]], 1),
        ([[]], 4),
    ],
)
def test_the_block_is_derived(mask: list[list[int]], block: int) -> None:
    found = np.array(mask, bool)
    assert Sparse(Float32(np.ones(found.shape, np.float32)), found).block == block


@pytest.mark.parametrize("keep", [0, 0.1, 0.5, 1])
@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("shape", [(3, 5), (1, 9), (4, 1), (17, 65), (35, 130), (0, 4), (4, 0)])
@pytest.mark.parametrize("kind", VALUES)
def test_round_trip(kind: str, shape: tuple[int, int], block: int, keep: float) -> None:
    inner = values(kind, *shape)
    form = Sparse(inner, random_mask(*shape, block, keep))
    wanted = np.where(form.mask, inner.dense(), 0)
    for layout in layouts(pack(form)[0]):
        entry, arrays = pack(form, layout)
        again = unpack(json.loads(json.dumps(entry)), {k: a.copy() for k, a in arrays.items()}, layout=layout)
        assert isinstance(again, Sparse)
        assert type(again.values) is type(inner)
        assert np.array_equal(again.mask, form.mask)
        assert np.array_equal(again.dense(), wanted)
        assert again.dense().dtype == np.float32
        assert (again.fields(), again.scale is None) == (form.fields(), form.scale is None)
        for name, a in again.arrays(layout).items():
            assert a.dtype == arrays[name].dtype
            assert np.array_equal(a, arrays[name])
    assert form.size_bytes == sum(a.nbytes for a in form.arrays().values())


@given(st.data(), st.integers(0, 20), st.integers(0, 70))
def test_any_mask_comes_back(data: st.DataObject, rows: int, columns: int) -> None:
    mask = data.draw(hnp.arrays(np.bool_, (rows, columns)))
    q = data.draw(hnp.arrays(np.int8, (rows, columns), elements=st.integers(-127, 127)))
    form = Sparse(Int8(q, np.ones(rows, np.float32)), mask)
    for layout in ("rows", "panels"):
        again = unpack(*pack(form, layout), layout=layout)  # type: ignore[misc]
        assert isinstance(again, Sparse)
        assert np.array_equal(again.integers(), np.where(mask, q, 0))
        assert np.array_equal(again.mask, mask)


def test_densified_weights_are_the_same_bits() -> None:
    for kind in ("float32", "int8 row", "int8 matrix"):
        form = Sparse(values(kind, 5, 7), random_mask(5, 7, 1, 0.5))
        dense = form.densified()
        assert dense is not None
        assert np.array_equal(dense.dense(), form.dense())
    assert Sparse(values("codes int8 row 16", 5, 7), random_mask(5, 7, 1, 0.5)).densified() is None


def test_what_cannot_be_sparse() -> None:
    shifted = int8_matrix(np.array([[1, 2, 3]], np.float32))
    mask = np.ones((1, 3), bool)
    with pytest.raises(
        ConfigError, match="sparse weights of int8 with shift -127; allowed: float32, int8 without shift"
    ):
        Sparse(shifted, mask)
    with pytest.raises(ConfigError, match="sparse weights of Sparse; allowed"):
        Sparse(Sparse(Float32(np.zeros((1, 3), np.float32)), mask), mask)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"a mask of bool \[3, 1\]; it must be bool \[1, 3\]"):
        Sparse(Float32(np.zeros((1, 3), np.float32)), mask.T)


@pytest.mark.parametrize(
    ("kind", "activations", "layout"),
    [
        ("float32", "float", "rows"),
        ("int8 row", "int8", "panels"),
        ("int8 row", "static", "panels"),
        ("int8 row", "float", "rows"),
        ("codes int8 row 16", "int8", "panels"),
        ("codes int8 row 100", "int8", "rows"),
        ("codes float32 row 16", "float", "rows"),
    ],
)
def test_where_sparse_matrices_lie(kind: str, activations: str, layout: str) -> None:
    entry, _ = pack(Sparse(values(kind, 4, 5), random_mask(4, 5, 1, 0.5)))
    assert multiplied_layout(entry, activations) == layout


# files that must be refused -----------------------------------------------------------------------------------------

DROP = object()
HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("int8 row", {"block": 2}, "allowed: block 1 or 4, values of float32, int8 or codes"),
    ("int8 row", {"block": True}, "allowed: block 1 or 4"),
    ("int8 row", {"block": DROP}, "form 'sparse' lacks 'block'"),
    ("int8 row", {"values": DROP}, "form 'sparse' lacks 'values'"),
    ("int8 row", {"values": 3}, "allowed: block 1 or 4, values of"),
    ("int8 row", {"values": {"form": "sparse"}}, "values of float32, int8 or codes"),
    ("int8 row", {"values": {"form": ["int8"]}}, "m: "),
    ("int8 row", {"values": {"form": "int8", "per": "row", "shift": 3}}, "sparse int8 values with shift=3; allowed: 0"),
    ("int8 row", {"values": {"form": "int8", "per": "row"}}, "form 'sparse' lacks 'shift'"),
    (
        "int8 row",
        {"values": {"form": "int8", "per": "matrix", "shift": 0}},
        r"'scale' is float32 \[4\]; it must be float32 \[1\]",
    ),
    ("int8 row", {"block": 4}, "'mask' is uint8"),
    ("int8 row", {"shape": [4, 2**24]}, "'mask' is uint8"),
    ("int8 row", {"shape": [4, 2**26 + 1]}, "4 x 67108865 sparse weights; at most 268435456 are read"),
    ("int8 row", {"shape": [4, 2**70]}, "sparse weights; at most 268435456 are read"),
    ("int8 row", {"shape": [5, 19]}, "m: '(mask|scale)' is"),
    ("float32", {"values": {"form": "int8", "per": "row", "shift": 0}}, "form 'sparse' lacks 'q'"),
    (
        "codes int8 row 16",
        {"values": {"form": "codes", "centres": 1, "per": "row", "table": "int8"}},
        "allowed: 2 to 256 centres",
    ),
]


@pytest.mark.parametrize("layout", ["rows", "panels"])
@pytest.mark.parametrize(("kind", "change", "message"), HOSTILE)
def test_hostile_entries_are_refused(kind: str, change: dict[str, Any], message: str, layout: Layout) -> None:
    entry, arrays = pack(
        Sparse(values(kind, 4, 19), random_mask(4, 19, 1, 0.5)), "rows" if kind == "float32" else layout
    )
    entry = {k: v for k, v in (entry | change).items() if v is not DROP}
    with pytest.raises(ArtifactError, match=message) as error:
        check(entry, arrays, "m", "rows" if kind == "float32" else layout)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("layout", "rows"), [("rows", 2**23 + 1), ("panels", 2**22 + 1)])
def test_filling_counts_among_the_weights(layout: Layout, rows: int) -> None:
    """One column, in blocks of four: a byte of mask stands for 32 weights; panels are filled up to 64 columns."""
    entry, arrays = pack(Sparse(values("int8 row", 4, 1), random_mask(4, 1, 1, 0.5)), layout)
    with pytest.raises(ArtifactError, match=f"m: {rows} x 1 sparse weights; at most 268435456 are read"):
        check(entry | {"shape": [rows, 1]}, arrays, "m", layout)
    with pytest.raises(ArtifactError, match="'mask' is uint8"):
        check(entry | {"shape": [rows - 1, 1]}, arrays, "m", layout)


@pytest.mark.parametrize("layout", ["rows", "panels"])
@pytest.mark.parametrize("kind", ["int8 row", "codes int8 row 16", "codes int8 row 3"])
def test_damaged_masks_are_refused(kind: str, layout: Layout) -> None:
    """A bit more, a bit less, one beyond the last column, one beyond the last row."""
    entry, arrays = pack(Sparse(values(kind, 4, 19), random_mask(4, 19, 1, 0.5)), layout)
    part = "q" if kind.startswith("int8") else "codes"

    def damaged(row: int, byte: int, bits: int) -> dict[str, np.ndarray]:
        mask = arrays["mask"].copy()
        mask.reshape(len(mask), -1)[row, byte] = bits
        return arrays | {"mask": mask}

    for bits in (0, 255) if part == "q" else ():
        with pytest.raises(ArtifactError, match="m: 'q' is int8"):
            check(entry, damaged(1, 0, bits), "m", layout)
    with pytest.raises(ArtifactError, match=f"m: '{part}' is .*; it must be"):
        check(entry, arrays | {part: arrays[part][:-1]}, "m", layout)
    with pytest.raises(ArtifactError, match="m: 'mask' has bits beyond the 4 x 19 weights; they must be zero"):
        check(entry, damaged(0, 2, 0b1000), "m", layout)
    if layout == "panels":
        for row, byte in ((4, 0), (15, 7), (0, 3)):
            with pytest.raises(ArtifactError, match="bits beyond"):
                check(entry, damaged(row, byte, 1), "m", layout)


def test_damaged_survivors_are_refused() -> None:
    entry, arrays = pack(Sparse(values("int8 row", 4, 19), random_mask(4, 19, 1, 0.5)), "panels")
    q = arrays["q"].copy()
    q[-1] = 1
    with pytest.raises(ArtifactError, match="m: 64 zero bytes must follow the survivors"):
        unpack(entry, arrays | {"q": q}, "m", "panels")
    q[0], q[-1] = -128, 0
    with pytest.raises(ArtifactError, match="'q' holds -128"):
        check(entry, arrays | {"q": q}, "m", "panels")
    with pytest.raises(ArtifactError, match="'q' is uint8"):
        check(entry, arrays | {"q": q.view(np.uint8)}, "m", "panels")
    with pytest.raises(ArtifactError, match="'mask' is int8"):
        check(entry, arrays | {"mask": arrays["mask"].view(np.int8)}, "m", "panels")
    entry, arrays = pack(Sparse(values("codes int8 row 3", 4, 19), random_mask(4, 19, 1, 0.5)), "panels")
    codes = arrays["codes"].copy()
    codes[0] = 255
    with pytest.raises(ArtifactError, match="m: code 3 beyond a table of 3 centres"):
        unpack(entry, arrays | {"codes": codes}, "m", "panels")
    entry, arrays = pack(Sparse(values("float32", 4, 19), random_mask(4, 19, 1, 0.5)))
    with pytest.raises(ArtifactError, match="m: sparse float32 values lie in panels"):
        check(entry, arrays, "m", "panels")
    with pytest.raises(ArtifactError, match="'values' holds NaN"):
        check(entry, arrays | {"values": np.full_like(arrays["values"], np.nan)}, "m")


def test_blocks_around_survivors() -> None:
    q = np.array([[1, 0, 3, 4, 5, 6], [0, 2, 0, 0, 7, 8]], np.int8)
    mask = np.array([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], bool)
    form = Sparse(Int8(q, np.ones(2, np.float32)), mask)
    wide = form.in_blocks()
    assert wide is not None
    assert wide.mask.tolist() == [[True] * 4 + [False] * 2, [False] * 4 + [True] * 2]
    assert wide.block == 4
    assert wide.arrays()["q"].tolist() == [1, 0, 0, 0, 0, 8]
    assert np.array_equal(wide.dense(), form.dense())
    assert Sparse(values("codes int8 row 16", 5, 7), random_mask(5, 7, 1, 0.5)).in_blocks() is None
    empty = Sparse(Int8(np.zeros((2, 0), np.int8), np.ones(2, np.float32)), np.zeros((2, 0), bool)).in_blocks()
    assert empty is not None
    assert empty.shape == (2, 0)
