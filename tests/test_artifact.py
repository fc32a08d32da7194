"""The .fly file: what is written is read back, and every kind of damage is an ArtifactError."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from fly_bytes import assemble, parts

from flyweight import artifact
from flyweight.artifact import ALIGN, FORMAT_VERSION, manifest_sha256, read, verify, write
from flyweight.errors import ArtifactError
from flyweight.forms import Layout, pack
from flyweight.forms.int8 import int8_rows

MANIFEST: dict[str, Any] = {"model": {"pooling": "mean"}, "weights": {}, "lineage": {}, "metrics": {}, "golden": {}}
N_MUTATIONS = 500  # of each kind


def arrays() -> dict[str, np.ndarray]:
    """Every dtype, sizes on, below and above a multiple of 64 bytes, an empty tensor, a transposed view."""
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.integers(-127, 128, (8, 8)).astype(np.int8),
        "c": rng.integers(0, 256, 65).astype(np.uint8),
        "empty": np.zeros((4, 0), np.float32),
        "d": rng.normal(size=(4, 6)).astype(np.float32).T,
        "tokenizer.json": np.frombuffer("{\"ü\": 1}".encode(), np.uint8),
    }  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "bot.fly", MANIFEST, arrays())


# write and read -----------------------------------------------------------------------------------------------------


def test_written_is_read(file: Path) -> None:
    found = verify(file)
    for name, a in arrays().items():
        assert found.arrays[name].dtype == a.dtype
        assert found.arrays[name].shape == a.shape
        assert np.array_equal(found.array(name), a)
    assert list(found.arrays) == list(arrays())
    assert {k: found.manifest[k] for k in MANIFEST} == MANIFEST
    assert (found.manifest["format_version"], found.manifest["layout"]) == (FORMAT_VERSION, "panels")
    assert found.size_bytes == file.stat().st_size
    assert found.tokenizer_json() == '{"ü": 1}'


def test_the_same_content_gives_the_same_bytes(file: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "again.fly", MANIFEST, arrays()).read_bytes() == file.read_bytes()


def test_the_safetensors_library_opens_it(file: Path) -> None:
    from safetensors import safe_open

    with safe_open(str(file), framework="np") as opened:
        assert set(opened.keys()) == set(arrays())
        for name, a in arrays().items():
            stored = opened.get_tensor(name)  # flat, padded with zeros
            assert np.array_equal(stored[: a.size], a.ravel())
            assert not stored[a.size :].any()
        assert json.loads(opened.metadata()["flyweight"])["model"] == MANIFEST["model"]


def test_every_tensor_lies_at_a_multiple_of_64_bytes_without_holes(file: Path) -> None:
    data = file.read_bytes()
    header, _, tensors = parts(data)
    start = len(data) - len(tensors)
    at = 0
    for name, a in arrays().items():
        low, high = header[name]["data_offsets"]
        assert low == at
        assert (start + low) % ALIGN == 0
        assert 0 <= high - low - a.nbytes < ALIGN
        at = high
    assert start + at == len(data)
    for a in read(file).arrays.values():
        assert a.size == 0 or a.ctypes.data % ALIGN == 0


def test_reading_maps_the_file(file: Path) -> None:
    found = read(file)
    for a in found.arrays.values():
        assert not a.flags.writeable
        assert not a.flags.owndata
    before = found.array("c")[0]
    data = bytearray(file.read_bytes())
    at = data.find(arrays()["c"].tobytes())
    with file.open("r+b") as opened:  # a view of the file, no copy: it sees a change
        opened.seek(at)
        opened.write(bytes([before ^ 0xFF]))
    assert found.array("c")[0] == before ^ 0xFF


def test_forms_of_a_file(tmp_path: Path) -> None:
    form = int8_rows(np.arange(12, dtype=np.float32).reshape(3, 4))
    for layout in get_args(Layout):
        entry, stored = pack(form, layout)
        manifest = MANIFEST | {"weights": {"m": entry | {"layout": layout}}}
        found = verify(write(tmp_path / "x.fly", manifest, {f"m.{k}": a for k, a in stored.items()}))
        assert np.array_equal(found.form("m").dense(), form.dense())
        assert found.stored("m")["q"].shape == ((3, 4) if layout == "rows" else (1, 1, 16, 64))
        assert not found.stored("m")["q"].flags.owndata
    with pytest.raises(ArtifactError, match=r"x\.fly: matrix 'n' is missing; the file is incomplete, export it again"):
        found.form("n")
    with pytest.raises(ArtifactError, match="tensor 'n' is missing; the file is incomplete"):
        found.array("n")


def test_other_dtypes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tensor 'x' is float64; a \.fly file holds F32, I8, U8"):
        write(tmp_path / "x.fly", MANIFEST, {"x": np.zeros(3)})
    assert list(tmp_path.iterdir()) == []


def test_writing_is_whole_or_not_at_all(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()
    assert list(file.parent.iterdir()) == [file]

    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, "no space left on device")

    class Full(np.ndarray):
        tobytes = full

    unwritable = np.zeros((3, 3), np.float32).view(Full)
    monkeypatch.setattr(artifact, "_sha256", lambda a: "0")
    monkeypatch.setattr(artifact.np, "ascontiguousarray", lambda a: a)
    with pytest.raises(OSError, match="no space left"):
        write(file, MANIFEST, arrays() | {"last": unwritable})
    monkeypatch.undo()
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file], "a .part file is left"
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write(file, MANIFEST, {})
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file], "a .part file is left"


def test_folders_are_made(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a" / "b" / "x.fly", MANIFEST, {})).arrays == {}


# damage by hand -----------------------------------------------------------------------------------------------------


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"x\.fly does not exist; name a \.fly file"):
        read(tmp_path / "x.fly")
    with pytest.raises(ArtifactError, match=r"is a folder; a \.fly file is needed"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has 0 bytes; that is too short for a .fly file"),
        (b"x" * 71, "has 71 bytes; that is too short"),
        (b"PK\x03\x04" + b"\xff" * 200, "header of .* bytes in a file of 204; truncated, or no .fly file"),
        ((1 << 63).to_bytes(8, "little") + b" " * 64, "header of 9223372036854775808 bytes"),
        ((65).to_bytes(8, "little") + b" " * 64, "header of 65 bytes in a file of 72"),
        ((64).to_bytes(8, "little") + b" " * 64, "the header is no JSON"),
        ((64).to_bytes(8, "little") + b"\xff" * 64, "the header is no JSON"),
        ((64).to_bytes(8, "little") + b"[" * 64, "the header is no JSON"),
        ((64).to_bytes(8, "little") + b"[]" + b" " * 62, "the header is a list; it must be a JSON object"),
        ((64).to_bytes(8, "little") + b"{}" + b" " * 62, "has no Flyweight manifest; it is a safetensors file of"),
        ((200000).to_bytes(8, "little") + b"[" * 200000, "the header is no JSON"),
    ],
)
def test_no_fly_file(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.fly").write_bytes(data)
    with pytest.raises(ArtifactError, match=message) as error:
        read(tmp_path / "x.fly")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


Change = Callable[[dict[str, Any], dict[str, Any]], None]  # of header and manifest, in place
DAMAGE: list[tuple[str, Change, str]] = [
    (
        "newer version",
        lambda h, m: m.update(format_version=2),
        "has format version 2; this Flyweight reads versions 1 to 1",
    ),
    ("version 0", lambda h, m: m.update(format_version=0), "has format version 0;"),
    ("version text", lambda h, m: m.update(format_version="1"), "has format version 1;"),
    ("layout", lambda h, m: m.update(layout="rows"), "has layout 'rows'; this Flyweight reads 'panels'"),
    ("no golden", lambda h, m: m.pop("golden"), "the manifest lacks golden; export the model again"),
    ("no model", lambda h, m: m.pop("model"), "the manifest lacks model;"),
    ("list", lambda h, m: m.update(weights=[]), "manifest entry 'weights' is no JSON object"),
    ("tensors null", lambda h, m: m.update(tensors=None), "manifest entry 'tensors' is no JSON object"),
    ("tensor unknown", lambda h, m: m["tensors"].pop("b"), r"header and manifest name different tensors \(b\)"),
    ("tensor absent", lambda h, m: h.pop("b"), r"header and manifest name different tensors \(b\)"),
    ("dtype", lambda h, m: h["b"].update(dtype="F64"), "tensor 'b' has a broken entry .*; damaged"),
    ("dtype list", lambda h, m: h["b"].update(dtype=["I8"]), "tensor 'b' has a broken entry"),
    ("dtype size", lambda h, m: h["b"].update(dtype="F32"), "tensor 'b' of shape"),
    ("no shape", lambda h, m: h["b"].pop("shape"), "tensor 'b' has a broken entry"),
    ("entry", lambda h, m: h.update(b=5), "tensor 'b' has a broken entry"),
    ("entry null", lambda h, m: m["tensors"].update(b=None), "tensor 'b' has a broken entry"),
    (
        "offset gap",
        lambda h, m: h["b"].update(data_offsets=[128, 192]),
        r"lies at 128..192; tensors must follow one another \(next byte: 64\)",
    ),
    ("overlap", lambda h, m: h["b"].update(data_offsets=[0, 64]), r"tensor 'b' .* lies at 0..64; .* \(next byte: 64\)"),
    ("offset negative", lambda h, m: h["a"].update(data_offsets=[-64, 0]), "tensor 'a' has shape"),
    (
        "offset text",
        lambda h, m: h["a"].update(data_offsets=["0", "64"]),
        "tensor 'a' .* allowed: whole numbers from 0 to",
    ),
    (
        "offset float",
        lambda h, m: h["a"].update(data_offsets=[0.0, 64.0]),
        "tensor 'a' .* allowed: whole numbers from 0 to",
    ),
    (
        "offset null",
        lambda h, m: h["a"].update(data_offsets=[None, 64]),
        "tensor 'a' .* allowed: whole numbers from 0 to",
    ),
    (
        "offset bool",
        lambda h, m: h["a"].update(data_offsets=[False, 64]),
        "tensor 'a' .* allowed: whole numbers from 0 to",
    ),
    ("three offsets", lambda h, m: h["a"].update(data_offsets=[0, 64, 128]), "tensor 'a' has a broken entry"),
    ("shape text", lambda h, m: m["tensors"]["a"].update(shape="ab"), "tensor 'a' .* allowed: whole numbers from 0 to"),
    (
        "shape negative",
        lambda h, m: m["tensors"]["a"].update(shape=[-3, -5]),
        "tensor 'a' .* allowed: whole numbers from 0 to",
    ),
    ("shape smaller", lambda h, m: m["tensors"]["b"].update(shape=[7, 7, 1, 0]), "tensor 'b' of shape"),
    (
        "shape larger",
        lambda h, m: m["tensors"]["b"].update(shape=[8, 9]),
        r"tensor 'b' of shape \[8, 9\] .* padded to 64",
    ),
    ("shape huge", lambda h, m: m["tensors"]["b"].update(shape=[2**40, 2**40]), "tensor 'b' has shape"),
    ("shape huge empty", lambda h, m: m["tensors"]["empty"].update(shape=[0, 2**80]), "tensor 'empty'"),
    (
        "shape deep",
        lambda h, m: m["tensors"]["b"].update(shape=[1] * 99 + [64]),
        "tensor 'b' has shape .* at most 4 axes",
    ),
    ("lone surrogate", lambda h, m: m.update(extra="\ud800"), ""),
    ("big number", lambda h, m: m.update(format_version=10**400), "has format version"),
]


@pytest.mark.parametrize(("change", "message"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damaged_header_or_manifest(file: Path, change: Change, message: str) -> None:
    header, manifest, tensors = parts(file.read_bytes())
    change(header, manifest)
    file.write_bytes(assemble(header, manifest, tensors))
    if message:
        with pytest.raises(ArtifactError, match=message) as error:
            read(file)
        assert "\n" not in str(error.value)
    else:
        read(file)


def test_damaged_metadata(file: Path) -> None:
    header, manifest, tensors = parts(file.read_bytes())
    for metadata, message in [
        ({"format": "pt"}, "has no Flyweight manifest"),
        ({"flyweight": 5}, "has no Flyweight manifest"),
        (["flyweight"], "has no Flyweight manifest"),
        ({"flyweight": "{}"}, "the manifest does not fit its SHA-256"),
        ({"flyweight": "{}", "manifest_sha256": 5}, "the manifest does not fit its SHA-256"),
        *(
            ({"flyweight": text, "manifest_sha256": manifest_sha256(text)}, message)
            for text, message in [
                ("no JSON", "the manifest is no JSON"),
                ("[1]", "the manifest is a list; it must be a JSON object"),
                ("\ud800", "the manifest is no JSON"),
                ("[" * 100000, "the manifest is no JSON"),
            ]
        ),
    ]:
        file.write_bytes(assemble(header, manifest, tensors, metadata))
        with pytest.raises(ArtifactError, match=message):
            read(file)
    file.write_bytes(assemble([], None, tensors))
    with pytest.raises(ArtifactError, match="the header is a list"):
        read(file)


def test_bytes_too_many_and_misaligned(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data + b"\0")
    with pytest.raises(ArtifactError, match="1 bytes after the last tensor; damaged"):
        read(file)
    header, manifest, tensors = parts(data)
    for n in range(64):
        text = assemble(header, manifest, b"", pad=False)
        text = (len(text) - 8 + n).to_bytes(8, "little") + text[8:] + b" " * n
        file.write_bytes(text + tensors)
        if len(text) % ALIGN:
            with pytest.raises(
                ArtifactError, match=f"tensors begin at byte {len(text)}; they must begin at a multiple of 64"
            ):
                read(file)
        else:
            read(file)


def test_truncations_are_refused(file: Path) -> None:
    data = file.read_bytes()
    for n in [*range(0, len(data), 5), *range(len(data) - 70, len(data))]:
        file.write_bytes(data[:n])
        with pytest.raises(ArtifactError):
            read(file)


def test_verify_finds_every_flipped_data_byte(file: Path) -> None:
    data = file.read_bytes()
    header, _, tensors = parts(data)
    start = len(data) - len(tensors)
    for name, a in arrays().items():
        low = start + header[name]["data_offsets"][0]
        for at in range(low, low + a.nbytes):
            flipped = bytearray(data)
            flipped[at] ^= 1 << (at % 8)
            file.write_bytes(flipped)
            read(file)  # the structure is sound
            with pytest.raises(
                ArtifactError, match=rf"tensor '{name}' has SHA-256 .* the file is damaged, copy or export"
            ):
                verify(file)


def test_a_missing_checksum_is_no_verification(file: Path) -> None:
    header, manifest, tensors = parts(file.read_bytes())
    del manifest["tensors"]["b"]["sha256"]
    file.write_bytes(assemble(header, manifest, tensors))
    with pytest.raises(ArtifactError, match=r"tensor 'b' has SHA-256 .* the manifest says None"):
        verify(file)
