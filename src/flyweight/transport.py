"""The transport form of a .fly file: entropy-coded for disks and networks, decoded once into the plain file.

    bot.fly  --pack-->  bot.fly.zst  --unpack, or the first load-->  bot.fly, mapped into memory as ever

Weights hold fewer bits than they take: k-means codes and int8 steps are not equally frequent, a sparse matrix's mask is
mostly of one kind. zstandard's Huffman and FSE coders come near to the entropy, and any zstd tool reads the file.

    H = -sum_v p(v) log2 p(v)     bits a weight, p: shares of the codes (int8 steps) of a matrix
    sparse: H of the mask (of blocks: a fourth of it) + share kept * H of what survives

Serving wins nothing by it: bytes on disk and on the way, not memory, not milliseconds.
Source: Han et al. 2015, arXiv:1510.00149 (Deep Compression: prune, share, Huffman-code).
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flyweight.artifact import Artifact, check_sums, read, verify, whole_file
from flyweight.errors import ArtifactError, MissingExtraError
from flyweight.forms import Codes, Float32, Form, Int8, Sparse

SUFFIX = ".zst"
LEVEL = 19  # decoding takes the same time at every level
MAX_RATIO = 1000  # a few bytes that ask for the whole disk are refused
CHUNK = 1 << 16


@dataclass(frozen=True)
class Packed:
    """What packing gave. Bits are a weight's, over all matrices; `plain_bits`: in the .fly file."""

    path: Path
    plain_bytes: int
    packed_bytes: int
    n_weights: int
    plain_bits: float
    packed_bits: float
    entropy_bits: float


def pack(fly: str | Path, out: str | Path | None = None) -> Packed:
    """Write the transport form beside the file, or to `out`. Errors: ArtifactError, MissingExtraError."""
    zstd = _zstandard()
    artifact = verify(fly)
    path = Path(out) if out is not None else artifact.path.with_name(artifact.path.name + SUFFIX)
    if path.suffix != SUFFIX:
        raise ArtifactError(f"{path} is no name for a transport form; its name must end in {SUFFIX}")
    parameters = zstd.ZstdCompressionParameters.from_level(LEVEL, write_content_size=True, write_checksum=True)
    coder = zstd.ZstdCompressor(compression_params=parameters)
    packed = coder.compress(artifact.path.read_bytes())
    with whole_file(path) as file:
        file.write(packed)
    weights = artifact.manifest["weights"]
    ours = {key for key in artifact.arrays if key.rpartition(".")[0] in weights and not key.endswith(".bias")}
    others = b"".join(a.tobytes() for key, a in artifact.arrays.items() if key not in ours)
    head = json.dumps(artifact.manifest).encode("utf-8", "surrogatepass")
    n_weights = max(1, sum(entry["shape"][0] * entry["shape"][1] for entry in weights.values()))
    entropy = sum(e["shape"][0] * e["shape"][1] * entropy_bits(artifact.form(name)) for name, e in weights.items())
    return Packed(
        path,
        artifact.size_bytes,
        len(packed),
        n_weights,
        8 * sum(artifact.arrays[key].nbytes for key in ours) / n_weights,
        8 * max(0, len(packed) - len(coder.compress(head + others))) / n_weights,
        entropy / n_weights,
    )


def unpack(packed: str | Path, out: str | Path | None = None) -> Artifact:
    """Write the plain .fly file beside it, or to `out`, and verify it. Errors: ArtifactError, MissingExtraError."""
    packed = Path(packed)
    path = Path(out) if out is not None else packed.with_suffix("")
    if path.suffix != ".fly":
        raise ArtifactError(f"{path} is no name for a plain file; its name must end in .fly")
    content = _content(packed)
    size = _size(packed, content)
    with whole_file(path) as file:
        _decode(packed, content, size, file)
        file.flush()
        try:
            verify(file.name)
        except ArtifactError as error:
            said = str(error).replace(file.name, "what is in it")
            raise ArtifactError(f"{packed} holds no sound .fly file: {said}") from error
    return read(path)


def unpacked(packed: Path) -> Path:
    """The plain file of a transport form, in the user's cache folder: decoded by the first call, found by others.

    One that is found is compared with its SHA-256 sums, and decoded again where it was damaged.
    """
    content = _content(packed)
    size = _size(packed, content)
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise ArtifactError(f"{folder} belongs to another user; name a folder of yours in XDG_CACHE_HOME")
    path = folder / f"{hashlib.sha256(content).hexdigest()}.fly"
    if not (path.is_file() and path.stat().st_size == size and _sound(path)):
        unpack(packed, path)
    return path


def cache_folder() -> Path:
    """Where plain files lie, to be removed at will: $XDG_CACHE_HOME/flyweight/unpacked, by default in ~/.cache.

    A relative XDG_CACHE_HOME does not count, as its specification says.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (named if named.is_absolute() else Path.home() / ".cache") / "flyweight" / "unpacked"
    except RuntimeError as error:
        raise ArtifactError(f"no cache folder: {error} Name one in XDG_CACHE_HOME, or flyweight unpack") from error


def entropy_bits(form: Form) -> float:
    """H of the module's head: what no coder of single weights can go below. Floats count as 32 bits. Empty: 0."""
    if isinstance(form, Sparse):
        kept = float(form.mask.mean()) if form.mask.size else 0.0
        return entropy(np.array([kept, 1 - kept])) / form.block + kept * _values_bits(form.values, form.mask)
    return _values_bits(form, None)


def entropy(shares: np.ndarray) -> float:
    """-sum p log2 p of shares that add up to 1, in bits; a share of 0 adds nothing."""
    there = shares[shares > 0]
    return float(-(there * np.log2(there)).sum())


def _values_bits(form: Form, mask: np.ndarray | None) -> float:
    """H of the stored values, of the surviving ones where there is a mask."""
    if isinstance(form, Float32):
        return 32.0
    assert isinstance(form, Int8 | Codes)
    values = form.q.view(np.uint8) if isinstance(form, Int8) else form.codes
    counts = np.bincount(values[mask] if mask is not None else values.ravel(), minlength=1)
    return entropy(counts / max(int(counts.sum()), 1))


def _content(packed: Path) -> bytes:
    if not packed.is_file():
        raise ArtifactError(f"{packed} does not exist; name the transport form of a .fly file (flyweight pack bot.fly)")
    return packed.read_bytes()


def _size(packed: Path, content: bytes) -> int:
    """Bytes of the plain file, as the frame says it."""
    zstd = _zstandard()
    try:
        size: int = zstd.get_frame_parameters(content).content_size
    except zstd.ZstdError as error:
        raise _damaged(packed, error) from error
    if size in (zstd.CONTENTSIZE_UNKNOWN, zstd.CONTENTSIZE_ERROR):
        raise ArtifactError(f"{packed} does not say how large the plain file is; pack it again")
    if size > MAX_RATIO * len(content):
        raise ArtifactError(
            f"{packed} of {len(content)} bytes says that it holds {size}; no .fly file is {MAX_RATIO} times larger"
        )
    return size


def _decode(packed: Path, content: bytes, size: int, file: BinaryIO) -> None:
    """Piece by piece, and little more than was announced: memory and disk stay small."""
    zstd = _zstandard()
    decoder, fed, written = zstd.ZstdDecompressor().decompressobj(), 0, 0
    try:
        while fed < len(content) and not decoder.eof and written <= size:
            piece = decoder.decompress(content[fed : fed + CHUNK])
            fed, written = fed + CHUNK, written + len(piece)
            file.write(piece)
    except zstd.ZstdError as error:
        raise _damaged(packed, error) from error
    if not decoder.eof or written != size or decoder.unused_data or fed < len(content):
        raise _damaged(packed, f"{written} of {size} bytes, or bytes behind the end")


def _damaged(packed: Path, why: object) -> ArtifactError:
    return ArtifactError(f"{packed} is no transport form, or damaged ({why}); copy or pack it again")


def _sound(path: Path) -> bool:
    """Whether a plain file is as it was written."""
    try:
        check_sums(read(path))
    except ArtifactError:
        return False
    return True


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "transport", "the transport form of a .fly file") from error
    return zstandard
