"""Weight forms: golden numbers by hand, error bounds, byte layout, and entries that must be refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from flyweight.errors import ArtifactError
from flyweight.forms import Codes, Float32, Form, Int8, Layout, describe, multiplied_layout, pack, unpack
from flyweight.forms.codes import code_bits, codes_from_centres, nearest, pack_bits, row_bytes, unpack_bits
from flyweight.forms.int8 import int8_matrix, int8_rows

# x * (127 / absmax) is rounded twice, q * scale twice more, each by 2^-24 of at most 127 steps.
ROUNDING_STEPS = 4 * 127 * 2.0**-24
SMALLEST = 2.0**-100  # rows that stay below are stored as zeros

shapes = st.tuples(st.integers(1, 6), st.integers(1, 9))
weights = shapes.flatmap(lambda s: hnp.arrays(np.float32, s, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
plain_weights = shapes.flatmap(lambda s: hnp.arrays(np.float32, s, elements=st.floats(-4, 4, width=16)))


# int8, one scale a row ----------------------------------------------------------------------------------------------


def test_int8_rows_by_hand() -> None:
    # 127/10 = 12.7: -127, -38.1, 63.5 -> 64 (even), 25.4
    form = int8_rows(np.array([[-10, -3, 5, 2], [0, 0, 0, 0]], np.float32))
    assert form.q.tolist() == [[-127, -38, 64, 25], [0, 0, 0, 0]]
    assert form.q.dtype == np.int8
    assert form.scale.tolist() == [np.float32(10) / np.float32(127), 0.0]
    assert (form.shift, form.shape, form.size_bytes) == (0, (2, 4), 8 + 8)


def test_int8_rows_halves_go_to_the_even_integer() -> None:
    form = int8_rows(np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], np.float32))  # scale 1
    assert form.q.tolist() == [[127, 0, 2, 2, 0, -2, -2]]
    assert form.dense().tolist() == [[127, 0, 2, 2, 0, -2, -2]]


def test_int8_rows_edge_rows() -> None:
    w = np.array([[SMALLEST, -SMALLEST], [SMALLEST * 0.99, 0], [1e-42, 1e-45], [-3e38, 3e38]], np.float32)
    form = int8_rows(w)
    assert form.q.tolist() == [[127, -127], [0, 0], [0, 0], [-127, 127]]
    assert (form.scale > 0).tolist() == [True, False, False, True]
    assert np.isfinite(form.dense()).all()
    assert int8_rows(np.zeros((3, 0), np.float32)).shape == (3, 0)
    assert int8_rows(np.zeros((0, 3), np.float32)).shape == (0, 3)


@given(weights)
def test_int8_rows_error_is_half_a_step(w: np.ndarray) -> None:
    form = int8_rows(w)
    error = np.abs(w.astype(np.float64) - form.dense())
    assert (error <= form.scale[:, None].astype(np.float64) * (0.5 + ROUNDING_STEPS) + SMALLEST).all()
    live = np.abs(w).max(axis=1) >= SMALLEST
    assert (np.abs(form.q.astype(int)).max(axis=1) == 127 * live).all()  # the grid is used to its end, -128 never


# int8, one scale and shift a matrix ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("w", "scale", "shift", "q"),
    [
        ([[-1, 0, 1.54], [0.5, 0.25, 1.0]], 2.54 / 254, -27, [[-127, -27, 127], [23, -2, 73]]),
        ([[0.5, 1.0], [2.54, 1.27]], 2.54 / 254, -127, [[-77, -27], [127, 0]]),  # all positive: 0 is the lowest step
        ([[-0.5, -1.0], [-2.54, -1.27]], 2.54 / 254, 127, [[77, 27], [-127, 0]]),  # all negative: 0 is the highest
        ([[-127, 127]], 1.0, 0, [[-127, 127]]),
        ([[0, 0], [0, 0]], 0.0, 0, [[0, 0], [0, 0]]),
    ],
)
def test_int8_matrix_by_hand(w: list[list[float]], scale: float, shift: int, q: list[list[int]]) -> None:
    form = int8_matrix(np.array(w, np.float32))
    assert form.scale.tolist() == [np.float32(scale)]
    assert (form.shift, form.q.tolist()) == (shift, q)
    assert form.size_bytes == form.q.size + 4


@given(weights)
def test_int8_matrix_error_is_a_step_and_zero_is_exact(w: np.ndarray) -> None:
    w[0, 0] = 0
    form = int8_matrix(w)
    dense = form.dense()
    assert (dense[w == 0] == 0).all()
    # half a step by rounding, half by the rounded shift at the clipped end
    bound = float(form.scale[0]) * (1 + 2 * ROUNDING_STEPS) + 254 * SMALLEST
    assert (np.abs(w.astype(np.float64) - dense) <= bound).all()
    assert form.q.min() >= -127
    assert -127 <= form.shift <= 127
    assert np.array_equal(dense, (form.q.astype(np.float32) - form.shift) * form.scale[0])


def test_int8_matrix_of_no_weights() -> None:
    form = int8_matrix(np.zeros((4, 0), np.float32))
    assert (form.shape, form.dense().shape) == ((4, 0), (4, 0))


# bit-packed codes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_centres", "bits"),
    [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3), (9, 4), (16, 4), (17, 5), (128, 7), (129, 8), (256, 8)],
)
def test_code_bits(n_centres: int, bits: int) -> None:
    assert code_bits(n_centres) == bits


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (1, [[1, 0, 1, 1, 0, 0, 0, 0, 1]], [[0b00001101, 0b1]]),
        (2, [[1, 2, 3, 0, 2]], [[0b00_11_10_01, 0b10]]),
        (3, [[1, 2, 7], [5, 0, 4]], [[0b11_010_001, 0b1], [0b00_000_101, 0b1]]),  # each row begins on a byte border
        (4, [[0x1, 0xF, 0xA]], [[0xF1, 0x0A]]),
        (5, [[31, 1]], [[0b001_11111, 0]]),
        (6, [[63, 1, 2]], [[0b01_111111, 0b0010_0000, 0]]),
        (7, [[1, 127]], [[0b1_0000001, 0b111111]]),
        (8, [[1, 255]], [[1, 255]]),
    ],
)
def test_byte_layout_by_hand(bits: int, codes: list[list[int]], packed: list[list[int]]) -> None:
    found = pack_bits(np.array(codes, np.uint8), bits)
    assert found.dtype == np.uint8
    assert found.tolist() == packed
    assert unpack_bits(found, len(codes[0]), bits).tolist() == codes


@given(st.data(), st.integers(1, 8), st.integers(0, 5), st.integers(0, 20))
def test_packing_is_reversible_and_row_by_row(data: st.DataObject, bits: int, rows: int, columns: int) -> None:
    codes = data.draw(hnp.arrays(np.uint8, (rows, columns), elements=st.integers(0, 2**bits - 1)))
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, row_bytes(columns, bits))
    assert row_bytes(columns, bits) == -(-columns * bits // 8)
    assert np.array_equal(unpack_bits(packed, columns, bits), codes)
    for r in range(rows):
        assert sum(int(c) << (i * bits) for i, c in enumerate(codes[r])) == int.from_bytes(
            packed[r].tobytes(), "little"
        )


def test_sixteen_centres_take_four_bits_a_weight() -> None:
    form = codes_from_centres(np.zeros((3, 7), np.float32), np.zeros((3, 16)), integer=True)
    assert form.bits == 4
    assert form.arrays()["codes"].shape == (3, 4)
    assert form.size_bytes == 3 * 4 + 3 * 16 + 3 * 4  # codes, int8 centres, scales
    assert codes_from_centres(np.zeros((3, 7), np.float32), np.zeros((1, 4)), integer=False).size_bytes == 3 * 2 + 4 * 4


# nearest centres ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_tables", [1, 3])
def test_a_tie_takes_the_lower_index(n_tables: int) -> None:
    w = np.array([[-9, 0, 1, 2, 3, 9], [1.0001, 0.9999, 4, 5, 6, 7], [2, 4, 6, 8, 10, 12]], np.float32)
    found = nearest(w, np.tile(np.array([0, 2, 8], np.float32), (n_tables, 1)))
    assert found.tolist() == [[0, 0, 0, 1, 1, 2], [1, 0, 1, 1, 2, 2], [1, 1, 2, 2, 2, 2]]  # 1 and 5 are ties
    assert found.dtype == np.uint8


@given(st.data(), st.integers(2, 40), st.booleans())
def test_nearest_equals_brute_force(data: st.DataObject, k: int, shared: bool) -> None:
    rows = data.draw(st.integers(1, 4))
    steps = st.integers(-500, 500)  # eighths: midpoints and distances are exact in float32
    centres = data.draw(hnp.arrays(np.int64, (1 if shared else rows, k), elements=steps, unique=True))
    centres = np.sort(centres, axis=1).astype(np.float32) / 8
    w = data.draw(hnp.arrays(np.int64, (rows, 5), elements=steps)).astype(np.float32) / 8
    distance = np.abs(w[:, :, None] - centres[:, None, :])
    assert np.array_equal(nearest(w, centres), distance.argmin(axis=2))  # argmin: the lower index on a tie


@given(plain_weights, st.integers(2, 40))
def test_repeated_centres_still_decode_to_the_nearest(w: np.ndarray, k: int) -> None:
    centres = np.sort(np.resize(w[:, :3], (len(w), k)), axis=1)
    form = codes_from_centres(w, centres, integer=False)
    best = np.abs(w[:, :, None] - centres[:, None, :]).min(axis=2)
    # the midpoint of two centres is rounded once, so a weight within 2^-24 of it may go either way
    assert (np.abs(w - form.dense()) <= best + 4 * 2.0**-22).all()


def test_float_centres_by_hand() -> None:
    form = codes_from_centres(
        np.array([[0.1, 0.9, -5], [3, 3, 3]], np.float32), np.array([[1.0, 0.0], [4.0, 2.0]]), False
    )
    assert form.table.tolist() == [[0, 1], [2, 4]]  # sorted
    assert form.codes.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert form.dense().tolist() == [[0, 1, 0], [2, 2, 2]]
    assert form.scale is None


def test_integer_centres_by_hand() -> None:
    # row 0: scale 2/127, centre 0.55 -> 34.925 -> 35; row 1 all zero; row 2: scale 1, halves to even
    centres = np.array([[-2, 0.55], [0, 0], [2.5, 127]])
    w = np.array([[-1.9, 0.5], [0.3, -0.3], [64.4, 64.6]], np.float32)
    form = codes_from_centres(w, centres, integer=True)
    assert form.table.dtype == np.int8
    assert form.table.tolist() == [[-127, 35], [0, 0], [2, 127]]
    assert form.scale is not None
    assert form.scale.tolist() == [np.float32(2) / np.float32(127), 0, 1]
    assert form.codes[[0, 2]].tolist() == [[0, 1], [0, 1]]  # 64.5 lies between the rounded centres 2 and 127
    assert form.integers().tolist() == [[-127, 35], [0, 0], [2, 127]]
    assert np.array_equal(form.dense(), form.integers() * form.scale[:, None])


@given(plain_weights, st.sampled_from([2, 3, 16]), st.booleans())
def test_integer_centres_are_within_half_a_step(w: np.ndarray, k: int, shared: bool) -> None:
    centres = np.sort(np.resize(w[:1] if shared else w, (1 if shared else len(w), k)), axis=1)
    form = codes_from_centres(w, centres, integer=True)
    assert form.scale is not None
    step = form.scale[:, None].astype(np.float64)
    assert (np.abs(form.table * step - centres) <= step * (0.5 + ROUNDING_STEPS) + SMALLEST).all()


# pack and unpack ----------------------------------------------------------------------------------------------------


def make(kind: str, rows: int, columns: int) -> Form:
    """A form of each kind from seeded weights."""
    w = np.random.default_rng([rows, columns]).normal(size=(rows, columns)).astype(np.float32)
    if kind == "float32":
        return Float32(w)
    if kind.startswith("int8"):
        return int8_rows(w) if kind == "int8 row" else int8_matrix(w + 0.5)
    _, table, per, k = kind.split()
    group = 2 if per == "group" and rows > 2 else 1  # the rows of a smaller matrix have a table each
    n_tables = 1 if per == "matrix" else -(-rows // group)
    centres = np.sort(np.random.default_rng(1).normal(size=(n_tables, int(k))), axis=1)
    return codes_from_centres(w, centres, table == "int8", group)


KINDS = ["float32", "int8 row", "int8 matrix"]
KINDS += [
    f"codes {t} {per} {k}"
    for t in ("int8", "float32")
    for per in ("row", "group", "matrix")
    for k in (2, 3, 16, 100, 256)
]


@pytest.mark.parametrize("layout", ["rows", "panels"])
@pytest.mark.parametrize("shape", [(3, 5), (1, 9), (4, 1), (17, 65), (0, 4), (4, 0)])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str, shape: tuple[int, int], layout: Layout) -> None:
    form = make(kind, *shape)
    if layout == "panels" and multiplied_layout(describe(form), "float" if kind == "float32" else "int8") == "rows":
        return
    entry, arrays = pack(form, layout)
    again = unpack(json.loads(json.dumps(entry)), {k: a.copy() for k, a in arrays.items()}, layout=layout)
    assert type(again) is type(form)
    assert again.shape == form.shape == shape
    assert np.array_equal(again.dense(), form.dense())
    assert again.dense().dtype == np.float32
    assert again.fields() == form.fields()
    assert form.size_bytes == sum(a.nbytes for a in form.arrays().values())
    for name, a in again.arrays(layout).items():
        assert a.dtype == arrays[name].dtype
        assert np.array_equal(a, arrays[name])


def test_manifest_entries() -> None:
    assert pack(make("float32", 2, 3))[0] == {"form": "float32", "shape": [2, 3]}
    assert pack(make("int8 row", 2, 3))[0] == {"form": "int8", "shape": [2, 3], "per": "row", "shift": 0}
    assert pack(make("int8 matrix", 2, 3))[0]["per"] == "matrix"
    entry = {"form": "codes", "shape": [2, 3], "centres": 16, "per": "matrix", "table": "int8"}
    assert pack(make("codes int8 matrix 16", 2, 3))[0] == entry
    entry = {"form": "codes", "shape": [5, 3], "centres": 16, "per": "group", "rows": 2, "table": "int8"}
    assert pack(make("codes int8 group 16", 5, 3))[0] == entry


@pytest.mark.parametrize("integer", [False, True])
def test_groups_of_rows_store_a_table_once(integer: bool) -> None:
    """Rows 0, 1 share a table, 2, 3 another, 4 has the last one."""
    w = np.array([[0, 1.27], [1.27, 0], [2.54, -1], [2.54, 2.54], [-1.27, 5]], np.float32)
    form = codes_from_centres(w, np.array([[0, 1.27], [-1, 2.54], [-1.27, 0]]), integer, 2)
    assert form.codes.tolist() == [[0, 1], [1, 0], [1, 0], [1, 1], [0, 1]]
    stored = form.arrays()
    assert form.dense()[:4, :] == pytest.approx(w[:4], abs=1e-6)
    assert form.dense()[4].tolist() == pytest.approx([-1.27, 0])
    if integer:
        assert stored["table"].tolist() == [[0, 127], [-50, 127], [-127, 0]]
        assert stored["scale"].tolist() == pytest.approx([0.01, 0.02, 0.01])
        assert form.integers().tolist() == [[0, 127], [127, 0], [127, -50], [127, 127], [-127, 0]]
    assert form.size_bytes == 5 * 1 + 3 * 2 * (1 if integer else 4) + (3 * 4 if integer else 0)


DROP = object()
HOSTILE_ENTRIES: list[tuple[str, dict[str, Any], str]] = [
    ("float32", {"form": "int3"}, "m: form 'int3' is unknown; this version reads float32, int8, codes"),
    ("float32", {"form": DROP}, "form '.*' is unknown"),
    ("float32", {"form": ["int8"]}, "form '.*' is unknown"),
    ("float32", {"shape": [4]}, r"m: shape \[4\]; a weight has two sizes"),
    ("float32", {"shape": [4, -5]}, "a weight has two sizes, both at least 0"),
    ("float32", {"shape": "ab"}, "a weight has two sizes"),
    ("float32", {"shape": [4.0, 5]}, "a weight has two sizes"),
    ("float32", {"shape": [True, 5]}, "a weight has two sizes"),
    ("float32", {"shape": [5, 4]}, r"m: 'values' is float32 \[4, 5\]; it must be float32 \[5, 4\]"),
    ("int8 row", {"shape": [4, 2**70]}, "it must be int8"),
    ("int8 row", {"per": "column"}, "per='column', shift=0; allowed: row or matrix, an integer in"),
    ("int8 row", {"per": ["row"]}, "m: "),
    ("int8 row", {"per": DROP}, "m: form 'int8' lacks 'per'"),
    ("int8 row", {"per": "matrix"}, r"'scale' is float32 \[4\]; it must be float32 \[1\]"),
    ("int8 matrix", {"shift": 1.5}, "shift=1.5; allowed"),
    ("int8 matrix", {"shift": 128}, "shift=128; allowed"),
    ("int8 matrix", {"shift": None}, "shift=None; allowed"),
    ("int8 matrix", {"shift": True}, "shift=True; allowed"),
    ("codes int8 row 16", {"centres": 1}, "allowed: 2 to 256 centres"),
    ("codes int8 row 16", {"centres": 257}, "allowed: 2 to 256 centres"),
    ("codes int8 row 16", {"centres": "16"}, "allowed: 2 to 256 centres"),
    ("codes int8 row 16", {"centres": 32}, r"'codes' is uint8 \[4, 3\]; it must be uint8 \[4, 4\]"),
    ("codes int8 row 16", {"per": "matrix"}, r"'table' is int8 \[4, 16\]; it must be int8 \[1, 16\]"),
    ("codes int8 row 16", {"per": {}}, "m: "),
    ("codes int8 row 16", {"per": "group"}, "m: form 'codes' lacks 'rows'"),
    *(
        ("codes int8 row 16", {"per": "group", "rows": n}, f"m: a table for every {n!r} rows; allowed: whole numbers")
        for n in (1, 4, -2, 2.0, True, "2", 2**70)
    ),
    ("codes int8 row 16", {"per": "group", "rows": 0}, "per row, group or matrix"),
    ("codes int8 group 16", {"per": "row"}, r"'table' is int8 \[2, 16\]; it must be int8 \[4, 16\]"),
    ("codes int8 row 16", {"table": "int4"}, "int8 or float32"),
    ("codes int8 row 16", {"table": "float32"}, r"'table' is int8 \[4, 16\]; it must be float32 \[4, 16\]"),
    ("codes float32 row 16", {"table": "int8"}, r"'table' is float32 \[4, 16\]; it must be int8 \[4, 16\]"),
    ("codes float32 row 16", {"centres": 9}, "code 1[0-5] beyond a table of 9 centres"),
]


@pytest.mark.parametrize(("kind", "change", "message"), HOSTILE_ENTRIES)
def test_hostile_entries_are_refused(kind: str, change: dict[str, Any], message: str) -> None:
    entry, arrays = pack(make(kind, 4, 5))
    if "codes" in arrays and entry["table"] == "float32":
        arrays["codes"] = np.full_like(arrays["codes"], 0xEE)
        arrays["table"] = arrays["table"][:, : change.get("centres", 16)]
    entry = {k: v for k, v in (entry | change).items() if v is not DROP}
    with pytest.raises(ArtifactError, match=message) as error:
        unpack(entry, arrays, "m")
    assert "\n" not in str(error.value)


HOSTILE_ARRAYS: list[tuple[str, str, Any, str]] = [
    ("float32", "values", np.zeros((4, 5), np.float64), "'values' is float64"),
    ("float32", "values", np.full((4, 5), np.nan, np.float32), "'values' holds NaN or infinite values"),
    ("float32", "values", None, "form 'float32' lacks 'values'"),
    ("int8 row", "q", np.zeros((4, 5), np.uint8), r"'q' is uint8 \[4, 5\]; it must be int8 \[4, 5\]"),
    ("int8 row", "q", np.full((4, 5), -128, np.int8), "-128"),
    ("int8 row", "scale", np.zeros(5, np.float32), r"'scale' is float32 \[5\]"),
    ("int8 row", "scale", np.array([1, 1, np.inf, 1], np.float32), "'scale' holds NaN or infinite"),
    ("codes int8 row 16", "codes", np.zeros((4, 5), np.uint8), r"it must be uint8 \[4, 3\]"),
    ("codes int8 row 16", "table", np.zeros((4, 15), np.int8), r"it must be int8 \[4, 16\]"),
    ("codes int8 row 16", "table", np.full((4, 16), -128, np.int8), "-128"),
    ("codes int8 row 16", "scale", np.full(4, np.nan, np.float32), "'scale' holds NaN or infinite"),
    ("codes float32 matrix 16", "table", np.full((1, 16), np.nan, np.float32), "'table' holds NaN or infinite"),
    ("codes int8 row 3", "codes", np.full((4, 2), 0xFF, np.uint8), "code 3 beyond a table of 3 centres"),
    ("codes int8 row 100", "codes", np.full((4, 5), 0xFF, np.uint8), "code 127 beyond a table of 100 centres"),
]


@pytest.mark.parametrize(("kind", "part", "array", "message"), HOSTILE_ARRAYS)
def test_hostile_arrays_are_refused(kind: str, part: str, array: np.ndarray | None, message: str) -> None:
    entry, arrays = pack(make(kind, 4, 5))
    arrays = {k: a for k, a in (arrays | {part: array}).items() if a is not None}
    with pytest.raises(ArtifactError, match=message):
        unpack(entry, arrays)


def test_forms_say_what_they_are() -> None:
    assert [type(make(k, 2, 2)) for k in ("float32", "int8 row", "codes int8 row 4")] == [Float32, Int8, Codes]
