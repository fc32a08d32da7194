"""The .fly file: one safetensors file with a JSON manifest; written whole, read with distrust.

    8 bytes   length N of the header, little endian
    N bytes   JSON header: {"__metadata__": {"flyweight": MANIFEST, "manifest_sha256": ...},
                            NAME: {dtype, shape, data_offsets}, ...}, then blanks
    tensors   without holes, each at a multiple of 64 bytes: stored flat, padded with zeros to 64 bytes

The manifest (a JSON string) holds format_version, numerics_version, layout, model, weights, tensors (true shape and
SHA-256 of each), lineage, metrics, golden. Matrices that are multiplied lie in panels, those that are looked up in
rows. No pickle, and reading is an mmap: N processes share one copy.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flyweight.errors import ArtifactError
from flyweight.forms import Form, Layout, check, multiplied_layout, unpack

FORMAT_VERSION = 1
NUMERICS_VERSION = 1
LAYOUT = "panels"  # see `matrix_layout` and forms/panels.py
# By row; all other matrices are multiplied.
LOOKED_UP = ("embeddings.words", "embeddings.positions", "embeddings.ngrams")
MAX_WIDTH = 15  # tokens that a convolution sees
RECURRENT = (".lstm.forward", ".lstm.backward")  # ends of names; they multiply h, in [-1, 1]
RECURRENT_STEP = float(np.float32(1 / 127))  # of h, where weights are no floats
ALIGN = 64
MATRIX_ACTIVATIONS = ("float", "int8", "static")  # what a matrix is multiplied with
MAX_HEADER = 64 << 20
MAX_AXES = 4
DTYPES: dict[str, Any] = {"F32": np.float32, "I8": np.int8, "U8": np.uint8}
_NAMES = {np.dtype(d): name for name, d in DTYPES.items()}
REQUIRED = (
    "format_version",
    "numerics_version",
    "layout",
    "model",
    "weights",
    "tensors",
    "lineage",
    "metrics",
    "golden",
)


@dataclass(frozen=True)
class Artifact:
    """An open .fly file: `arrays` are read-only views into the mapped file."""

    path: Path
    manifest: dict[str, Any]
    arrays: dict[str, np.ndarray]
    size_bytes: int

    def array(self, name: str) -> np.ndarray:
        """One tensor. Errors: ArtifactError."""
        if name not in self.arrays:
            raise ArtifactError(f"{self.path}: tensor '{name}' is missing; the file is incomplete, export it again")
        return self.arrays[name]

    def entry(self, name: str) -> dict[str, Any]:
        """What the manifest says of one matrix. Errors: ArtifactError."""
        entry = self.manifest["weights"].get(name)
        if not isinstance(entry, dict):
            raise ArtifactError(f"{self.path}: matrix '{name}' is missing; the file is incomplete, export it again")
        return entry

    def stored(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of one matrix as they lie in the file, sizes checked, nothing unpacked. Errors: ArtifactError."""
        return check(*self._parts(name))

    def form(self, name: str) -> Form:
        """The weight form of one matrix, unpacked, everything checked. Errors: ArtifactError."""
        return unpack(*self._parts(name))

    def _parts(self, name: str) -> tuple[dict[str, Any], dict[str, np.ndarray], str, str]:
        entry = self.entry(name)
        parts = {k[len(name) + 1 :]: a for k, a in self.arrays.items() if k.startswith(f"{name}.")}
        return entry, parts, f"{self.path}: {name}", entry.get("layout", "")

    def tokenizer_json(self) -> str:
        """The text of the tokenizer.json inside."""
        try:
            return self.array("tokenizer.json").tobytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise ArtifactError(f"{self.path}: tokenizer.json is no UTF-8 text ({error.reason})") from error


def matrix_layout(name: str, entry: dict[str, Any], activations: str) -> Layout:
    """Where a matrix lies: rows that are looked up row by row; what is multiplied in panels, where the engine can."""
    return "rows" if name in LOOKED_UP else multiplied_layout(entry, activations)


def check_multiplied(name: str, entry: dict[str, Any], where: str) -> None:
    """What an entry says of the multiplication: activations, and the steps of static ones. Errors: ArtifactError.

    input_scale: with static activations, and only there; output_scales, a list of three: at an attention's qkv only.
    A recurrent matrix is multiplied by floats, or in its constant step.
    """
    activations = entry.get("activations")
    if activations not in MATRIX_ACTIVATIONS:
        raise ArtifactError(f"{where} has activations {activations!r}; allowed: {', '.join(MATRIX_ACTIVATIONS)}")
    if activations != "float":
        if name in LOOKED_UP:
            raise ArtifactError(f"{where} is looked up, its activations must be 'float'")
        values = entry["values"] if entry["form"] == "sparse" else entry
        if values["form"] == "float32" or values.get("table") == "float32":
            raise ArtifactError(f"{where} has float weights; {activations} activations need integer weights")
    if (activations == "static") != ("input_scale" in entry):
        raise ArtifactError(f"{where} has activations '{activations}'; 'static' needs an input_scale, others have none")
    if name.endswith(RECURRENT) and activations != "float" and entry.get("input_scale") != RECURRENT_STEP:
        raise ArtifactError(
            f"{where} has activations '{activations}' and the step {entry.get('input_scale')!r}; allowed: 'float', or "
            f"'static' with the step {RECURRENT_STEP!r} (1/127)"
        )
    scales = entry.get("output_scales", [])
    if "output_scales" in entry and not (name.endswith(".attention.qkv") and type(scales) is list and len(scales) == 3):
        raise ArtifactError(f"{where} has output_scales {scales!r}; allowed: a list of three, at an attention's qkv")
    for scale in [*([entry["input_scale"]] if activations == "static" else []), *scales]:
        if type(scale) is not float or not is_step(scale):
            raise ArtifactError(f"{where} has the step {scale!r}; allowed: float32 numbers from 2^-60 to 2^60")


def check_integer_only(model: dict[str, Any], weights: dict[str, Any], where: str) -> None:
    """That a model which says integer_only has integers everywhere. Errors: ArtifactError.

    model: the manifest's; weights: an entry for each matrix, as `check_multiplied` has let it pass.
    """
    encoder = model["encoder"]
    if not encoder.get("integer_only", False):
        return
    if model["pooling"] not in ("mean", "cls"):
        raise ArtifactError(f"{where} is integer_only with pooling '{model['pooling']}'; allowed: mean, cls")
    kinds = {layer_kind(layer) for layer in encoder["layers"]} - {"transformer"}
    if kinds or encoder.get("ngrams"):
        found = ", ".join([f"{kind} layers" for kind in sorted(kinds)] + ["bigrams"] * bool(encoder.get("ngrams")))
        raise ArtifactError(f"{where} is integer_only with {found}; allowed: transformer layers, without bigrams")
    if max(encoder["hidden"], encoder.get("embedding", 0)) > 4096:
        raise ArtifactError(f"{where} is integer_only with vectors of {encoder['hidden']}; allowed: up to 4096")
    for name, entry in weights.items():
        attends = name.endswith(".attention.qkv")
        if name in LOOKED_UP:
            found, allowed = entry["form"], "int8"
        elif 0 in entry["shape"]:
            continue
        else:
            found, allowed = entry["activations"], "static"
        if found != allowed:
            raise ArtifactError(f"{where} is integer_only, but {name} is {found}; all must be {allowed}")
        if attends and "output_scales" not in entry:
            raise ArtifactError(f"{where} is integer_only, but {name} has no output_scales; attention must be int8")


def layer_kind(layer: dict[str, Any]) -> str:
    """Of one of the manifest's layers: transformer, lstm or convolution."""
    return next((kind for kind in ("lstm", "convolution") if kind in layer), "transformer")


def is_step(scale: float) -> bool:
    """Whether int8 steps may have that size: float32, its inverse and the product of two neither 0 nor infinite."""
    return 2.0**-60 <= scale <= 2.0**60 and float(np.float32(scale)) == scale


def write(path: str | Path, manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> Path:
    """Write a .fly file, whole or not at all. `manifest` lacks only versions, layout and tensors: they are added."""
    path = Path(path)
    stored = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    manifest = {
        "format_version": FORMAT_VERSION,
        "numerics_version": NUMERICS_VERSION,
        "layout": LAYOUT,
        **manifest,
        "tensors": {n: {"shape": list(a.shape), "sha256": _sha256(a)} for n, a in stored.items()},
    }
    text = json.dumps(manifest, ensure_ascii=False)
    metadata = {"format": "flyweight", "flyweight": text, "manifest_sha256": manifest_sha256(text)}
    header: dict[str, Any] = {"__metadata__": metadata}
    offset = 0
    for name, a in stored.items():
        if a.dtype not in _NAMES:
            raise ArtifactError(f"tensor '{name}' is {a.dtype}; a .fly file holds {', '.join(DTYPES)}")
        size = _padded(a.nbytes)
        header[name] = {
            "dtype": _NAMES[a.dtype],
            "shape": [size // a.itemsize],
            "data_offsets": [offset, offset + size],
        }
        offset += size
    head = json.dumps(header, ensure_ascii=False).encode()
    head += b" " * (_padded(8 + len(head)) - 8 - len(head))
    with whole_file(path) as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for a in stored.values():
            file.write(a.tobytes())
            file.write(bytes(_padded(a.nbytes) - a.nbytes))
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when all has gone well, and is removed otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    trial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with trial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(trial, path)
    finally:
        trial.unlink(missing_ok=True)


def read(path: str | Path) -> Artifact:
    """Open a .fly file; structure (sizes, offsets, dtypes, versions) is checked before use. Errors: ArtifactError."""
    path = Path(path)
    if path.is_dir():
        raise ArtifactError(f"{path} is a folder; a .fly file is needed (flyweight compress MODEL DATA --out bot.fly)")
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; name a .fly file")
    size = path.stat().st_size
    if size < 8 + ALIGN:
        raise ArtifactError(f"{path} has {size} bytes; that is too short for a .fly file")
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    n_header = int.from_bytes(mapped[:8], "little")
    if n_header > min(MAX_HEADER, size - 8):
        raise ArtifactError(f"{path}: header of {n_header} bytes in a file of {size}; truncated, or no .fly file")
    header = _json(mapped[8 : 8 + n_header], path, "header")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("flyweight"), str):
        raise ArtifactError(f"{path} has no Flyweight manifest; it is a safetensors file of something else")
    if metadata.get("manifest_sha256") != manifest_sha256(metadata["flyweight"]):
        raise ArtifactError(f"{path}: the manifest does not fit its SHA-256; damaged or edited, export the model again")
    manifest = _json(metadata["flyweight"], path, "manifest")
    _check_manifest(manifest, path)
    arrays = _arrays(header, manifest["tensors"], mapped, 8 + n_header, size, path)
    return Artifact(path, manifest, arrays, size)


def verify(path: str | Path) -> Artifact:
    """`read`, compare every tensor's SHA-256 with the manifest, unpack every matrix. Errors: ArtifactError."""
    artifact = read(path)
    check_sums(artifact)
    for name in artifact.manifest["weights"]:
        artifact.form(name)
    return artifact


def check_sums(artifact: Artifact) -> None:
    """Compare every tensor's SHA-256 with the manifest. Errors: ArtifactError."""
    for name, a in artifact.arrays.items():
        wanted, found = artifact.manifest["tensors"][name].get("sha256"), _sha256(a)
        if wanted != found:
            raise ArtifactError(
                f"{artifact.path}: tensor '{name}' has SHA-256 {found[:12]}..., the manifest says "
                f"{str(wanted)[:12]}...; the file is damaged, copy or export it again"
            )


def manifest_sha256(text: str) -> str:
    """SHA-256 of the manifest's text: labels, synonyms and temperature decide answers as much as weights do."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _padded(n: int) -> int:
    return (n + ALIGN - 1) // ALIGN * ALIGN


def _sha256(a: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()


def _json(text: bytes | str, path: Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: the {what} is no JSON ({error}); damaged, or no .fly file") from error
    if not isinstance(found, dict):
        raise ArtifactError(f"{path}: the {what} is a {type(found).__name__}; it must be a JSON object")
    return found


def _check_manifest(manifest: dict[str, Any], path: Path) -> None:
    missing = [key for key in REQUIRED if key not in manifest]
    if missing:
        raise ArtifactError(f"{path}: the manifest lacks {', '.join(missing)}; export the model again")
    version = manifest["format_version"]
    if not isinstance(version, int) or not 1 <= version <= FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version}; this Flyweight reads versions 1 to {FORMAT_VERSION}: "
            "update Flyweight or export the model again"
        )
    numerics = manifest["numerics_version"]
    if not isinstance(numerics, int) or not 1 <= numerics <= NUMERICS_VERSION:
        raise ArtifactError(
            f"{path} has numerics version {numerics}; this Flyweight computes versions 1 to {NUMERICS_VERSION}: "
            "update Flyweight or export the model again"
        )
    if manifest["layout"] != LAYOUT:
        raise ArtifactError(f"{path} has layout '{manifest['layout']}'; this Flyweight reads '{LAYOUT}'")
    for key in ("model", "weights", "tensors", "lineage", "metrics", "golden"):
        if not isinstance(manifest[key], dict):
            raise ArtifactError(f"{path}: manifest entry '{key}' is no JSON object; export the model again")


def _arrays(
    header: dict[str, Any], tensors: dict[str, Any], mapped: mmap.mmap, start: int, size: int, path: Path
) -> dict[str, np.ndarray]:
    """Views of all tensors; offsets must follow one another and fill the file exactly."""
    if start % ALIGN:
        raise ArtifactError(f"{path}: tensors begin at byte {start}; they must begin at a multiple of {ALIGN}")
    if set(header) != set(tensors):
        odd = sorted(set(header) ^ set(tensors))[:3]
        raise ArtifactError(f"{path}: header and manifest name different tensors ({', '.join(odd)}); damaged")
    arrays = {}
    at = 0
    for name, entry in header.items():
        try:
            dtype = np.dtype(DTYPES[entry["dtype"]])
            low, high = entry["data_offsets"]
            (n_stored,) = entry["shape"]
            shape = tuple(tensors[name]["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{path}: tensor '{name}' has a broken entry ({error!r}); damaged") from error
        if len(shape) > MAX_AXES or not all(type(n) is int and 0 <= n <= size for n in (low, high, n_stored, *shape)):
            raise ArtifactError(
                f"{path}: tensor '{name}' has shape {list(shape)[:9]}, stored as {n_stored} at {low}..{high}; "
                f"allowed: whole numbers from 0 to {size} (the file's size), at most {MAX_AXES} axes"
            )
        count = math.prod(shape)
        stored = high - low
        if low != at or stored != n_stored * dtype.itemsize or stored != _padded(count * dtype.itemsize):
            raise ArtifactError(
                f"{path}: tensor '{name}' of shape {list(shape)} lies at {low}..{high}; "
                f"tensors must follow one another (next byte: {at}) and take their shape's size, padded to {ALIGN}"
            )
        if start + high > size:
            raise ArtifactError(f"{path}: tensor '{name}' ends at byte {start + high} of {size}; the file is truncated")
        arrays[name] = np.frombuffer(mapped, dtype, count, start + low).reshape(shape)
        at = high
    if start + at != size:
        raise ArtifactError(f"{path}: {size - start - at} bytes after the last tensor; damaged")
    return arrays
