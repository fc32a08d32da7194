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
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.artifact import Artifact, read, verify
from flyweight.errors import ArtifactError, MissingExtraError
from flyweight.forms import Codes, Float32, Form, Int8, Sparse

SUFFIX = ".zst"
LEVEL = 19  # decoding takes the same time at every level
MAX_BYTES = 16 << 30  # of an unpacked file: no header may ask for more


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
    _write(path, packed)
    plain, coded, entropy, n_weights = 0, 0, 0.0, 0
    for name, entry in artifact.manifest["weights"].items():
        parts = [
            a.tobytes() for key, a in artifact.arrays.items() if key.startswith(f"{name}.") and key != f"{name}.bias"
        ]
        plain += sum(len(part) for part in parts)
        coded += sum(len(coder.compress(part)) for part in parts)
        n = entry["shape"][0] * entry["shape"][1]
        entropy += n * entropy_bits(artifact.form(name))
        n_weights += n
    per_weight = 8 / max(n_weights, 1)
    return Packed(
        path,
        artifact.size_bytes,
        len(packed),
        n_weights,
        plain * per_weight,
        coded * per_weight,
        entropy / max(n_weights, 1),
    )


def unpack(packed: str | Path, out: str | Path | None = None) -> Artifact:
    """Write the plain .fly file beside it, or to `out`, and verify it. Errors: ArtifactError, MissingExtraError."""
    packed = Path(packed)
    path = Path(out) if out is not None else packed.with_suffix("")
    if path.suffix != ".fly":
        raise ArtifactError(f"{path} is no name for a plain file; its name must end in .fly")
    content = _decode(packed)
    trial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _write(trial, content)
        verify(trial)
        os.replace(trial, path)
    finally:
        trial.unlink(missing_ok=True)
    return read(path)


def unpacked(packed: Path) -> Path:
    """The plain file of a transport form, in the user's cache folder: decoded by the first call, found by others."""
    name = hashlib.sha256(_content(packed)).hexdigest()[:24]
    path = cache_folder() / f"{name}.fly"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        unpack(packed, path)
    return path


def cache_folder() -> Path:
    """Where plain files lie: $XDG_CACHE_HOME/flyweight/unpacked, by default in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flyweight" / "unpacked"


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


def _decode(packed: Path) -> bytes:
    zstd, content = _zstandard(), _content(packed)
    try:
        size = zstd.get_frame_parameters(content).content_size
        if size in (zstd.CONTENTSIZE_UNKNOWN, zstd.CONTENTSIZE_ERROR) or size > MAX_BYTES:
            raise ArtifactError(
                f"{packed} does not say how large it is, or more than {MAX_BYTES >> 30} GB; pack it again"
            )
        found: bytes = zstd.ZstdDecompressor().decompress(content, allow_extra_data=False)
    except (zstd.ZstdError, MemoryError) as error:
        raise ArtifactError(f"{packed} is no transport form, or damaged ({error}); copy or pack it again") from error
    return found


def _content(packed: Path) -> bytes:
    if not packed.is_file():
        raise ArtifactError(f"{packed} does not exist; name the transport form of a .fly file (flyweight pack bot.fly)")
    return packed.read_bytes()


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise MissingExtraError("zstandard", "transport", "the transport form of a .fly file") from error
    return zstandard
