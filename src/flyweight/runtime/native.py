"""The one door to the C++ engine, `flyweight._native`: which level it computes with, and a model in it.

Weights are not copied: the engine reads the panels where the file is mapped. What it cannot multiply is converted at
load: int8 weights or centres by float activations into float32 panels, codes of 3, 5, 6, 7, 8 bits into int8 panels,
sparse matrices into dense ones but where `stays_sparse`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from flyweight.artifact import LOOKED_UP, Artifact, layer_kind
from flyweight.cores import usable_cores
from flyweight.data.tags import Span
from flyweight.errors import ArtifactError, ConfigError
from flyweight.forms import Form, Sparse, pack, panels
from flyweight.forms.codes import Codes, by_row, code_bits
from flyweight.positions import distance_buckets
from flyweight.runtime.parts import check_parts, matrix_shapes, vector_shapes
from flyweight.tokenizer import Encoded

ISA_VARIABLE = "FLYWEIGHT_ISA"
WEIGHTS = {"float32": "values", "int8": "q", "codes": "codes"}  # the array of a form that is not its table or scale
MAX_SPARSE_COLUMNS = 4096  # kernels.h
BUILD_HINT = "install a C++ compiler, then: pip install --force-reinstall --no-deps flyweight"

Decoded = tuple[list[int], list[float], list[Span], list[int]]  # order, confidences, words, path
Ranked = tuple[list[dict[str, Any]], list[Span], list[int]]  # intents, words, path


class Native:
    """The model of a .fly file in the C++ engine. `level`: the instruction set it computes with."""

    name = "engine"

    def __init__(self, artifact: Artifact, threads: int = 1):
        native = module()
        if native is None:
            raise ConfigError(f"{why_not()}; {BUILD_HINT}")
        if type(threads) is not int or threads < 1:
            raise ConfigError(f"threads is {threads!r}; allowed: whole numbers from 1")
        self.path, self.level = artifact.path, pick_level(native)
        self.threads = min(threads, usable_cores())  # more would wait for one another in a container
        self.title = f"{self.name} {self.level}"
        encoder, model = check_parts(artifact), artifact.manifest["model"]
        self.vocab_size, self.has_tags = encoder["vocab_size"], bool(model["labels"]["entity_labels"])
        matrices = {name: matrix(artifact, name) for name in matrix_shapes(artifact)}
        biases = {f"{name}.bias" for name in matrices}
        vectors = {name: artifact.array(name) for name in vector_shapes(artifact) if name not in biases}
        try:
            self._engine = native.Engine(config(artifact), matrices, vectors, self.level)
        except ValueError as error:
            raise ArtifactError(f"{artifact.path}: {error}") from error

    def logits(self, encoded: list[Encoded], threads: int | None = None) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Logits of each message: intent (C,), tags (W, n_tags) or None. One native call; safe from several threads."""
        if not encoded:
            return []
        n_words = [len(e.first) for e in encoded]
        try:
            intent, tags = self.call(encoded, threads)()
        except ValueError as error:
            raise ArtifactError(f"{self.path}: {error}") from error
        if not self.has_tags:
            return [(row, None) for row in intent]
        ends = np.cumsum(n_words)
        return [(row, tags[end - n : end]) for row, end, n in zip(intent, ends, n_words, strict=True)]

    def call(self, encoded: list[Encoded], threads: int | None = None) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """The native call behind `logits`, its arguments made: the engine alone, for the clock."""
        ids, first = ([e.ids for e in encoded], [e.first for e in encoded])
        return partial(  # copies: nobody else may write what the engine has checked and still reads
            self._engine.logits,
            np.array(ids[0] if len(ids) == 1 else np.concatenate(ids), np.int32),
            np.array([len(row) for row in ids], np.int32),
            np.array(first[0] if len(first) == 1 else np.concatenate(first), np.int32),
            np.array([len(row) for row in first], np.int32),
            self.threads if threads is None else threads,
        )

    def answers(self, tokenizer: Any, texts: Sequence[str], temperature: float) -> list[Decoded | None]:
        """Text in, answer out, in one native call; None for a message whose logits are not finite.

        `tokenizer`: the C++ object of a Tokenizer. Each message: intents in rank order, their confidences, and, where
        any word has a tag, the words' spans and a tag number per word.
        """
        try:
            found: list[Decoded | None] = self._engine.answers(tokenizer, list(texts), temperature, self.threads)
        except ValueError as error:
            raise ArtifactError(f"{self.path}: {error}") from error
        return found

    def rankings(
        self, names: tuple[str, ...], tokenizer: Any, texts: Sequence[str], temperature: float
    ) -> list[Ranked | None]:
        """The same with {"name", "confidence"} of each intent, best first, in place of numbers; names: of intents."""
        try:
            found: list[Ranked | None] = self._engine.rankings(names, tokenizer, list(texts), temperature, self.threads)
        except ValueError as error:
            raise ArtifactError(f"{self.path}: {error}") from error
        return found


def module() -> Any:
    """`flyweight._native`, or None where it was not built."""
    return _import()[0]


def why_not() -> str:
    """Why there is no native engine, in a few words; "" where there is one."""
    return _import()[1]


def _import() -> tuple[Any, str]:
    try:
        found = import_module("flyweight._native")
    except ModuleNotFoundError:
        return None, "the native engine was not built when this Flyweight was installed"
    except ImportError as error:
        return None, f"the native engine cannot be loaded ({' '.join(str(error).split())})"
    return (found, "") if hasattr(found, "Engine") else (None, "the native engine was built in part only")


def pick_level(native: Any) -> str:
    """The fastest level usable here, or the one that FLYWEIGHT_ISA names. Errors: ConfigError."""
    usable, wanted = native.levels(), os.environ.get(ISA_VARIABLE)
    if not wanted:
        return str(usable[-1])
    if wanted in usable:
        return wanted
    why = "this CPU cannot run it" if wanted in native.built() else "this build has no such level"
    raise ConfigError(
        f"{ISA_VARIABLE} is '{wanted}', but {why}; usable here: {', '.join(usable)}; "
        f"unset {ISA_VARIABLE} to take the fastest, {usable[-1]}"
    )


def facts() -> dict[str, Any]:
    """JSON-able: which engine and level answer .fly files here.

    engine: "engine" (C++) or "numpy". level: of the engine; forced_level: what FLYWEIGHT_ISA says; None without.
    built_levels, usable_levels: in this build, and those of them that this CPU can run, slowest first. problem: why
    there is no engine or level, and what to do; None where all is well.
    """
    native, why = _import()
    problem = f"{why}; {BUILD_HINT}" if why else None
    level = None
    if native is not None:
        try:
            level = pick_level(native)
        except ConfigError as error:
            problem = str(error)
    return {
        "engine": "numpy" if native is None else Native.name,
        "level": level,
        "forced_level": os.environ.get(ISA_VARIABLE) or None,
        "built_levels": [] if native is None else list(native.built()),
        "usable_levels": [] if native is None else list(native.levels()),
        "problem": problem,
    }


def config(artifact: Artifact) -> dict[str, Any]:
    """What the engine must know of a checked model beside its weights.

    kinds: of each layer; heads and ffn are 0 but for transformers, widths but for convolutions.
    buckets: int32, bucket of each distance key - query from -(max_positions - 1) to max_positions - 1; None without.
    """
    model = artifact.manifest["model"]
    encoder, labels, buckets = model["encoder"], model["labels"], None
    if encoder["relative_buckets"]:
        distance = np.arange(1 - encoder["max_positions"], encoder["max_positions"])
        found = distance_buckets(distance, encoder["relative_buckets"], encoder["relative_max_distance"])
        buckets = found.astype(np.int32)
    return {k: encoder[k] for k in ("hidden", "head_size", "vocab_size", "max_positions", "activation", "norm_eps")} | {
        "embedding": encoder.get("embedding", 0),
        "integer_only": encoder.get("integer_only", False),
        "ngrams": encoder.get("ngrams", 0),
        "kinds": [layer_kind(layer) for layer in encoder["layers"]],
        "heads": [layer.get("heads", 0) for layer in encoder["layers"]],
        "ffn": [layer.get("ffn", 0) for layer in encoder["layers"]],
        "widths": [layer.get("convolution", 0) for layer in encoder["layers"]],
        "pooling": model["pooling"],
        "n_intents": len(labels["intents"]),
        "n_tags": 1 + 2 * len(labels["entity_labels"]) if labels["entity_labels"] else 0,
        "buckets": buckets,
    }


def matrix(artifact: Artifact, name: str) -> dict[str, Any]:
    """One matrix of a checked model as the engine takes it: views of the file, or converted to what it multiplies."""
    entry, activations = artifact.entry(name), artifact.entry(name)["activations"]
    rows, columns = entry["shape"]
    bias = artifact.array(f"{name}.bias") if f"{name}.bias" in vector_shapes(artifact) else None
    found: dict[str, Any] = {"rows": rows, "columns": columns, "activations": activations, "bias": bias}
    found |= {scale: entry.get(scale) for scale in ("input_scale", "output_scales")}
    if not rows * columns:  # no weights, whatever their form: y = bias
        return found | {"activations": "float"} | _weights("float32", np.zeros(0, np.float32))
    if entry["form"] == "sparse":
        if entry["layout"] == "panels":  # the engine makes it dense where it must
            return found | _stored(entry, artifact.stored(name))
        return found | _densified(artifact, name, entry)
    if name in LOOKED_UP or entry["layout"] == "panels":
        return found | _stored(entry, artifact.stored(name))
    form = artifact.form(name)
    if activations == "float":
        return found | _weights("float32", panels.pack_float32(form.dense()))
    assert isinstance(form, Codes)  # int8 weights by int8 activations lie in panels
    return found | _weights("int8", panels.pack_int8(form.integers()), scale=form.scale)


def _stored(entry: dict[str, Any], parts: dict[str, np.ndarray]) -> dict[str, Any]:
    """Weights as they lie in the file."""
    sparse = entry["form"] == "sparse"
    values = entry["values"] | {"shape": entry["shape"]} if sparse else entry
    table, scale = (by_row(values, parts[k]) if k in parts else None for k in ("table", "scale"))
    bits = code_bits(values["centres"]) if values["form"] == "codes" else 0
    shift = values.get("shift", 0) if values["form"] == "int8" else 0
    found = _weights(values["form"], parts[WEIGHTS[values["form"]]], table=table, scale=scale, shift=shift, bits=bits)
    return found | ({"block": entry["block"], "mask": parts["mask"].reshape(-1)} if sparse else {})


def _densified(artifact: Artifact, name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """A sparse matrix that lies in rows, as a dense one."""
    form = artifact.form(name)
    assert isinstance(form, Sparse)
    if name in LOOKED_UP:
        return _weights("float32", form.dense())
    if entry["activations"] == "float":
        return _weights("float32", panels.pack_float32(form.dense()))
    return _weights("int8", panels.pack_int8(form.integers()), scale=form.scale)


def level() -> str | None:
    """The level that answers .fly files here; None without an engine. Errors: ConfigError, as `pick_level`."""
    native = module()
    return None if native is None else pick_level(native)


def multiplies_sparse() -> bool:
    """Whether the level used here multiplies sparse matrices as they are; see Kernels::sparse in kernels.h."""
    native = module()
    return native is not None and pick_level(native) in native.sparse_levels()


def stays_sparse(entry: dict[str, Any]) -> bool:
    """Whether a sparse matrix is multiplied here as it lies in the file; if not, it is dense in memory.

    entry: with its layout. False without an engine: the reference unpacks everything.
    """
    return entry["layout"] == "panels" and entry["shape"][1] <= MAX_SPARSE_COLUMNS and multiplies_sparse()


def matrix_seconds(forms: Sequence[Form], n_tokens: int, seconds: float) -> list[float]:
    """Best seconds of each form's product with int8 activations of so many tokens, one thread.

    forms: of one shape, as the engine multiplies them, with panels; timed in turn, each for so many seconds in all.
    Needs an engine. Errors: ConfigError, as `pick_level`.
    """
    native = module()
    assert native is not None
    given = []
    for form in forms:
        entry, arrays = pack(form, "panels")
        rows, columns = form.shape
        found = {"rows": rows, "columns": columns, "activations": "int8", "bias": None}
        given.append(found | {"input_scale": None, "output_scales": None} | _stored(entry, arrays))
    return [float(s) for s in native.time_matrices(given, n_tokens, seconds, pick_level(native))]


def _weights(
    form: str,
    data: np.ndarray,
    table: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    shift: int = 0,
    bits: int = 0,
) -> dict[str, Any]:
    """Weights of a form, flat as stored."""
    found = {"form": form, "data": data.reshape(-1), "table": table, "scale": scale, "shift": shift, "bits": bits}
    return found | {"block": 0, "mask": None}
