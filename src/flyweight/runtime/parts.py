"""What a .fly file must hold: names, shapes and kinds of all parts, from the manifest's model. Guards every engine."""

from __future__ import annotations

from typing import Any

import numpy as np

from flyweight.artifact import (
    LOOKED_UP,
    MAX_WIDTH,
    RECURRENT,
    Artifact,
    check_integer_only,
    check_multiplied,
    layer_kind,
    matrix_layout,
)
from flyweight.errors import ArtifactError
from flyweight.forms import finite

POOLERS = ("cls+tanh", "cls+relu", "cls+gelu")  # f(heads.pooler x_cls + b), f behind the +
POOLINGS = ("mean", "max", "cls", *POOLERS)
INTENT_HEADS = ("linear", "similarity")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu")  # of FFNs and convolutions


def check_parts(artifact: Artifact) -> dict[str, Any]:
    """The manifest's encoder, once every part of the model has been found sound. Errors: ArtifactError.

    Nothing is unpacked: an engine may compute with `artifact.stored` of all `matrix_shapes` and `artifact.array` of all
    `vector_shapes` after this.
    """
    encoder = check_model(artifact)
    for name, shape in matrix_shapes(artifact).items():
        check_matrix(artifact, name, shape)
    matrices = {name: artifact.entry(name) for name in matrix_shapes(artifact)}
    check_integer_only(artifact.manifest["model"], matrices, str(artifact.path))
    for name, wanted in vector_shapes(artifact).items():
        a = artifact.array(name)
        if a.shape != wanted or a.dtype != np.float32 or not finite(a):
            raise ArtifactError(f"{artifact.path}: {name} is {a.dtype} {a.shape}; allowed: finite float32 {wanted}")
    return encoder


def embedding_width(encoder: dict[str, Any]) -> int:
    """Columns of the embeddings: `embedding`, where a projection to `hidden` follows them, or else `hidden`."""
    return int(encoder.get("embedding", 0) or encoder["hidden"])


def matrix_shapes(artifact: Artifact) -> dict[str, tuple[int, int]]:
    """(rows, columns) of every matrix of a checked model, by its name in the file."""
    model = artifact.manifest["model"]
    c, labels = model["encoder"], model["labels"]
    hidden, looked_up = c["hidden"], embedding_width(c)
    found = {"embeddings.words": (c["vocab_size"], looked_up), "embeddings.positions": (c["max_positions"], looked_up)}
    if c.get("ngrams"):
        found["embeddings.ngrams"] = (c["ngrams"], looked_up)
    if c.get("embedding"):
        found["embeddings.projection"] = (hidden, looked_up)
    for i, layer in enumerate(c["layers"]):
        found |= {f"layers.{i}.{name}": shape for name, shape in _layer_shapes(layer, hidden, c["head_size"]).items()}
    if model["pooling"] in POOLERS:
        found["heads.pooler"] = (hidden, hidden)
    found["heads.intent"] = (len(labels["intents"]), hidden)
    if labels["entity_labels"]:
        found["heads.tags"] = (1 + 2 * len(labels["entity_labels"]), hidden)
    return found


def _layer_shapes(layer: dict[str, Any], hidden: int, head_size: int) -> dict[str, tuple[int, int]]:
    """(rows, columns) of the matrices of one layer."""
    kind, u = layer_kind(layer), hidden // 2
    if kind == "lstm":
        return {"lstm.input": (8 * u, hidden), "lstm.forward": (4 * u, u), "lstm.backward": (4 * u, u)}
    if kind == "convolution":
        return {"convolution": (hidden, layer["convolution"] * hidden)}
    width, ffn = layer["heads"] * head_size, layer["ffn"]
    return {
        "attention.qkv": (3 * width, hidden),
        "attention.out": (hidden, width),
        "ffn.up": (ffn, hidden),
        "ffn.down": (hidden, ffn),
    }


NORMS = {
    "transformer": ("attention.norm", "ffn.norm"),
    "lstm": ("lstm.norm",),
    "convolution": ("convolution.norm",),
}


def vector_shapes(artifact: Artifact) -> dict[str, tuple[int, ...]]:
    """Shapes of everything that stays float32: biases, norms, relative position bias; by name in the file."""
    model = artifact.manifest["model"]
    c = model["encoder"]
    found: dict[str, tuple[int, ...]] = {}
    for name, (rows, _) in matrix_shapes(artifact).items():
        without = name in LOOKED_UP or name.endswith(RECURRENT)
        if not without and (name != "heads.intent" or model["intent_head"] == "linear"):
            found[f"{name}.bias"] = (rows,)
    norms = {"embeddings.norm": embedding_width(c)}
    for i, layer in enumerate(c["layers"]):
        kind = layer_kind(layer)
        norms |= {f"layers.{i}.{norm}": c["hidden"] for norm in NORMS[kind]}
        if c["relative_buckets"] and kind == "transformer":
            found[f"layers.{i}.attention.relative_bias"] = (c["relative_buckets"], layer["heads"])
    return found | {f"{norm}.{part}": (n,) for norm, n in norms.items() for part in ("weight", "bias")}


def check_matrix(artifact: Artifact, name: str, shape: tuple[int, int]) -> None:
    """Shape, activations, their steps and layout of one matrix, and its arrays as far as `artifact.stored` does."""
    entry = artifact.entry(name)
    artifact.stored(name)
    where = f"{artifact.path}: {name}"
    if tuple(entry["shape"]) != shape:
        raise ArtifactError(f"{where} is {tuple(entry['shape'])}; the model says {shape}")
    check_multiplied(name, entry, where)
    layout = matrix_layout(name, entry, entry["activations"])
    if entry["layout"] != layout:
        raise ArtifactError(f"{where} lies in {entry['layout']}; it must lie in {layout}, export the model again")


def check_model(artifact: Artifact) -> dict[str, Any]:
    """The manifest's encoder, every field of a type and range that can be computed with. Errors: ArtifactError."""
    model = artifact.manifest["model"]
    encoder, pooling, head = (model.get(k) for k in ("encoder", "pooling", "intent_head"))
    if not isinstance(encoder, dict) or not isinstance(encoder.get("layers"), list):
        raise ArtifactError(
            f"{artifact.path}: the manifest's model has no encoder with a list of layers; export it again"
        )
    sizes = [(f"encoder.{k}", encoder.get(k), 1) for k in ("vocab_size", "hidden", "head_size", "max_positions")]
    sizes += [(f"encoder.{k}", encoder.get(k, 0), 0) for k in ("embedding", "ngrams")]  # files of before have none
    for i, layer in enumerate(encoder["layers"]):
        shape = layer if isinstance(layer, dict) else {}
        if layer_kind(shape) == "transformer":
            sizes += [(f"encoder.layers[{i}].{k}", shape.get(k), 0) for k in ("heads", "ffn")]
        else:
            _check_other_kind(shape, encoder.get("hidden"), f"{artifact.path}: encoder.layers[{i}]")
    n_buckets, eps = encoder.get("relative_buckets"), encoder.get("norm_eps")
    if n_buckets != 0 or type(n_buckets) is not int:
        sizes.append(("encoder.relative_buckets", n_buckets, 4))
        sizes.append(("encoder.relative_max_distance", encoder.get("relative_max_distance"), 1))
    for name, n, least in sizes:
        if type(n) is not int or not least <= n < 2**31:
            raise ArtifactError(f"{artifact.path}: {name} is {n!r}; allowed: whole numbers from {least} to 2^31 - 1")
    if n_buckets and n_buckets // 4 >= encoder["relative_max_distance"]:
        raise ArtifactError(f"{artifact.path}: encoder.relative_max_distance must be above relative_buckets / 4")
    if type(eps) is not float or not 0 < eps < 1:
        raise ArtifactError(f"{artifact.path}: encoder.norm_eps is {eps!r}; allowed: above 0 and below 1")
    if type(encoder.get("integer_only", False)) is not bool:
        raise ArtifactError(
            f"{artifact.path}: encoder.integer_only is {encoder['integer_only']!r}; allowed: true or false"
        )
    labels = model.get("labels")
    lists = [labels.get(k) for k in ("intents", "entity_labels")] if isinstance(labels, dict) else [None]
    if not all(isinstance(names, list) for names in lists):
        raise ArtifactError(f"{artifact.path}: the manifest's model lacks labels; export it again")
    if not any(lists):
        raise ArtifactError(
            f"{artifact.path}: the model has neither intents nor entity labels; it could answer nothing"
        )
    choices = [
        ("encoder.activation", encoder.get("activation"), ACTIVATIONS),
        ("pooling", pooling, POOLINGS),
        ("intent_head", head, INTENT_HEADS),
    ]
    for name, value, allowed in choices:
        if not isinstance(value, str) or value not in allowed:
            raise ArtifactError(f"{artifact.path}: {name} is {value!r}; allowed: {', '.join(allowed)}")
    return encoder


def _check_other_kind(layer: dict[str, Any], hidden: object, where: str) -> None:
    """An LSTM or a convolution, and nothing else beside it. Errors: ArtifactError."""
    if len(layer) > 1:
        raise ArtifactError(f"{where} is {layer}; allowed: heads and ffn, or lstm, or convolution")
    width = layer.get("convolution", 1)
    if type(width) is not int or not 1 <= width <= MAX_WIDTH or width % 2 == 0:
        raise ArtifactError(f"{where}.convolution is {width!r}; allowed: odd whole numbers from 1 to {MAX_WIDTH}")
    if "lstm" in layer and layer["lstm"] is not True:
        raise ArtifactError(f"{where}.lstm is {layer['lstm']!r}; allowed: true")
    if "lstm" in layer and (type(hidden) is not int or hidden % 2):
        raise ArtifactError(f"{where} is an LSTM in a model of hidden {hidden!r}; allowed: even whole numbers")
