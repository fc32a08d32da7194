"""Which layers, heads and neurons of the dense model are still there: what pruning writes down as it cuts.

Indices are those of the dense model, the first one that was pruned. In JSON a layer's heads and neurons are bits,
lowest first, as one hexadecimal number: 384 digits for 1,536 neurons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flyweight.errors import CheckpointError
from flyweight.model.encoder import EncoderConfig, LayerShape
from flyweight.model.nlu import NLUModel

Indices = tuple[int, ...]


@dataclass(frozen=True)
class Survivors:
    """dense: shapes of the dense model's layers; layers: those kept, and of each of them its heads and neurons."""

    dense: tuple[LayerShape, ...]
    layers: Indices
    heads: tuple[Indices, ...]
    neurons: tuple[Indices, ...]

    @classmethod
    def all_of(cls, config: EncoderConfig) -> Survivors:
        """Of a model that nothing was removed from."""
        heads, neurons = (tuple(tuple(range(getattr(s, of))) for s in config.layers) for of in ("heads", "ffn"))
        return cls(config.layers, tuple(range(len(config.layers))), heads, neurons)

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

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "dense": [[s.heads, s.ffn] for s in self.dense],
            "layers": list(self.layers),
            "heads": [_bits(found) for found in self.heads],
            "neurons": [_bits(found) for found in self.neurons],
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Survivors:
        """The inverse of `to_dict`. Errors: CheckpointError."""
        try:
            dense = tuple(LayerShape(heads=heads, ffn=ffn) for heads, ffn in fields["dense"])
            layers = tuple(int(i) for i in fields["layers"])
            heads, neurons = (tuple(_indices(text) for text in fields[name]) for name in ("heads", "neurons"))
            fits = len(layers) == len(heads) == len(neurons) and all(
                max(h, default=-1) < dense[i].heads and max(n, default=-1) < dense[i].ffn
                for i, h, n in zip(layers, heads, neurons, strict=True)
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(f"what survived the pruning is written wrongly ({error!r})") from error
        if not fits:
            raise CheckpointError("what survived the pruning does not fit the dense model's shape")
        return cls(dense, layers, heads, neurons)


def survivors_of(model: NLUModel) -> Survivors:
    """What the model's card says; all of its own, where nothing was removed yet."""
    found = model.card.survivors
    return Survivors.all_of(model.encoder.config) if found is None else Survivors.from_dict(found)


def _cut(now: tuple[Indices, ...], kept: Mapping[int, Sequence[int]]) -> tuple[Indices, ...]:
    return tuple(tuple(of[j] for j in sorted(kept[i])) if i in kept else of for i, of in enumerate(now))


def _bits(indices: Sequence[int]) -> str:
    return f"{sum(1 << i for i in indices):x}"


def _indices(text: str) -> Indices:
    bits = int(text, 16)
    return tuple(i for i in range(bits.bit_length()) if bits >> i & 1)
