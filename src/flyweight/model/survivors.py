"""Which layers, heads and neurons of the dense model are still there: what pruning writes down as it cuts.

Indices are those of the dense model, the first one that was pruned, which a fingerprint of its layers' matrices names.
In JSON a layer's heads and neurons are bits, lowest first, as one hexadecimal number: 384 digits for 1,536 neurons.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from flyweight.errors import CheckpointError
from flyweight.model.encoder import EncoderConfig, LayerShape
from flyweight.model.nlu import NLUModel

Indices = tuple[int, ...]
MAX_LAYERS, MAX_HEADS, MAX_NEURONS = 1_000, 10_000, 1_000_000  # far beyond any encoder: what is written is not trusted
WRONG = "what survived the pruning"


@dataclass(frozen=True)
class Survivors:
    """dense: shapes of the dense model's layers; layers: those kept, and of each of them its heads and neurons.

    fingerprint: of the dense model's weights, see `fingerprint`; empty where nothing was cut yet.
    """

    dense: tuple[LayerShape, ...]
    layers: Indices
    heads: tuple[Indices, ...]
    neurons: tuple[Indices, ...]
    fingerprint: str = ""

    @classmethod
    def all_of(cls, config: EncoderConfig) -> Survivors:
        """Of a model that nothing was removed from. Errors: ConfigError where layers are no transformers."""
        shapes = config.transformer_shapes("removing structure")
        heads, neurons = (tuple(tuple(range(getattr(s, of))) for s in shapes) for of in ("heads", "ffn"))
        return cls(shapes, tuple(range(len(shapes))), heads, neurons)

    def with_heads(self, kept: Mapping[int, Sequence[int]]) -> Survivors:
        """After a cut that keeps these, layers and heads counted as they are now."""
        return replace(self, heads=_cut(self.heads, kept))

    def with_neurons(self, kept: Mapping[int, Sequence[int]]) -> Survivors:
        """As `with_heads`."""
        return replace(self, neurons=_cut(self.neurons, kept))

    def with_layers(self, kept: Sequence[int]) -> Survivors:
        """After a cut that keeps these layers, counted as they are now."""
        kept = sorted(kept)
        heads, neurons = (tuple(of[i] for i in kept) for of in (self.heads, self.neurons))
        return replace(self, layers=tuple(self.layers[i] for i in kept), heads=heads, neurons=neurons)

    def of_dense(self, layer: int) -> tuple[Indices, Indices]:
        """Heads and neurons of a layer of the dense model that are there: none where the layer is gone."""
        if layer not in self.layers:
            return (), ()
        at = self.layers.index(layer)
        return self.heads[at], self.neurons[at]

    def shapes(self) -> tuple[LayerShape, ...]:
        """Of the layers that are left."""
        return tuple(LayerShape(heads=len(h), ffn=len(n)) for h, n in zip(self.heads, self.neurons, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "dense": [[s.heads, s.ffn] for s in self.dense],
            "layers": list(self.layers),
            "heads": [_bits(found) for found in self.heads],
            "neurons": [_bits(found) for found in self.neurons],
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Survivors:
        """The inverse of `to_dict`. Errors: CheckpointError for what no cut can have written."""
        try:
            dense = tuple(
                LayerShape(heads=_whole(heads, MAX_HEADS), ffn=_whole(ffn, MAX_NEURONS))
                for heads, ffn in _list(fields["dense"])
            )
            layers = tuple(_whole(i, len(dense) - 1) for i in _list(fields["layers"]))
            if any(i >= j for i, j in pairwise(layers)):
                raise ValueError(f"layers {list(layers)} do not ascend")
            sizes = [(dense[i].heads, dense[i].ffn) for i in layers]
            heads, neurons = (
                tuple(_indices(text, size[of]) for text, size in zip(_list(fields[name]), sizes, strict=True))
                for of, name in enumerate(("heads", "neurons"))
            )
            found = fields.get("fingerprint", "")
            if not re.fullmatch(r"([0-9a-f]{16})?", found):
                raise ValueError(f"fingerprint {found[:20]!r}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{WRONG} is written wrongly ({error!r}); make the model anew") from error
        return cls(dense, layers, heads, neurons, found)


def survivors_of(model: NLUModel) -> Survivors:
    """What the model's card says; all of its own, where nothing was removed yet. Errors: CheckpointError."""
    if model.card.survivors is None:
        return Survivors.all_of(model.encoder.config)
    return fitting(model.card.survivors, model.encoder.config.transformer_shapes(WRONG))


def fitting(card: dict[str, Any], layers: Sequence[LayerShape]) -> Survivors:
    """Survivors as a card says them, of a model with such layers. Errors: CheckpointError where it has others."""
    found = Survivors.from_dict(card)
    if found.shapes() != tuple(layers):
        raise CheckpointError(f"{WRONG} is of a model with other heads, neurons or layers; make the model anew")
    return found


def before_cut(model: NLUModel) -> Survivors:
    """As `survivors_of`, with the fingerprint of the model where it is the first one that is cut."""
    found = survivors_of(model)
    return found if model.card.survivors is not None else replace(found, fingerprint=fingerprint(model))


def fingerprint(model: NLUModel) -> str:
    """16 digits of the SHA-256 of its layers' matrices: Wq, Wk, Wv, Wo, W1, W2, layer by layer."""
    found = hashlib.sha256()
    for layer in model.encoder.layers:
        for _, matrix in layer.matrices():
            found.update(matrix.weight.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _cut(now: tuple[Indices, ...], kept: Mapping[int, Sequence[int]]) -> tuple[Indices, ...]:
    return tuple(tuple(of[j] for j in sorted(kept[i])) if i in kept else of for i, of in enumerate(now))


def _bits(indices: Sequence[int]) -> str:
    return f"{sum(1 << i for i in indices):x}"


def _list(value: object) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_LAYERS:
        raise ValueError(f"no list of at most {MAX_LAYERS} layers")
    return value


def _whole(value: object, highest: int) -> int:
    if type(value) is not int or not 0 <= value <= highest:
        raise ValueError(f"{str(value)[:20]} is no whole number from 0 to {highest}")
    return value


def _indices(text: object, size: int) -> Indices:
    """Of the bits of a hexadecimal number, `size` at most."""
    if not isinstance(text, str) or len(text) > size // 4 + 1 or not re.fullmatch("[0-9a-f]+", text):
        raise ValueError(f"{str(text)[:20]!r} is no hexadecimal number of {size} bits")
    bits = int(text, 16)
    if bits >> size:
        raise ValueError(f"bit {bits.bit_length() - 1} of {size}")
    return tuple(i for i in range(bits.bit_length()) if bits >> i & 1)
