"""MaskSearch: heads and neurons go under a budget, all at once and without training; the others are tuned.

    minimise  sum of F_u over what is removed,   cost(what is kept) <= keep * cost(all);      F_u = mean_x (dL_x/dm_u)^2

Three steps (training/masks.py): the search over both kinds, which are weighed by their cost; swaps within a layer,
since units that do the same are not both to go; factors of what stays, layer by layer, such that each layer gives what
it gave before, folded into Wo and W2.

Changes: as head_pruning and neuron_pruning do. Minutes at most. Needs: labelled messages. Gives up: what training would
win back; train afterwards (qat, trained_codes), or take head_pruning, neuron_pruning or structured.
Before single weights are pruned and before packing.
Source: Kwon et al. 2022, arXiv:2204.09656.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np

from flyweight.analyse.shapes import Clock
from flyweight.errors import ConfigError
from flyweight.model.encoder import LayerShape
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import keep_heads, keep_neurons, unpacked_copy
from flyweight.techniques.room import Run, check_choice, check_share, check_whole
from flyweight.training.importance import MaskGradients, fisher, mask_gradients, representative
from flyweight.training.masks import Kept, rearranged, search, tune

INT8 = 8  # bits of the engine's matrices whose milliseconds are measured


@dataclass(frozen=True, kw_only=True)
class MaskSearch:
    """Post-training pruning of heads and neurons.

    keep: share of the cost of heads and neurons that stays, from 0 to 1; of one kind where the other stays whole
    cost: flops (multiplications of a message of mean length) | ms (the native engine's, int8, measured on this machine)
    heads: heads may go;  neurons: neurons may go (one of both must)
    swap: the second step;  tune: the third step
    n_messages: of the training split, 1 to 100000, fewer where it has fewer
    """

    keep: float = 0.5
    cost: Literal["flops", "ms"] = "flops"
    heads: bool = True
    neurons: bool = True
    swap: bool = True
    tune: bool = True
    n_messages: int = 512
    ZERO: ClassVar[dict[str, Any] | None] = {"keep": 1.0}

    def __post_init__(self) -> None:
        check_share("mask_search", "keep", self.keep)
        check_choice("mask_search", "cost", self.cost, ("flops", "ms"))
        check_choice("mask_search", "heads", self.heads, (True, False))
        check_choice("mask_search", "neurons", self.neurons, (True, False))
        if not (self.heads or self.neurons):
            raise ConfigError(
                "mask_search: heads and neurons are both False; allowed: true for one of them, or for both"
            )
        check_choice("mask_search", "swap", self.swap, (True, False))
        check_choice("mask_search", "tune", self.tune, (True, False))
        check_whole("mask_search", "n_messages", self.n_messages, 1, 100_000)

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A smaller model.

        Errors: ConfigError for packed or masked matrices, and for milliseconds without the native engine; DataError
        where no message can score.
        """
        if self.keep == 1:
            return model.copy()
        model.encoder.config.transformer_shapes("mask_search")
        model = unpacked_copy(model)
        gradients = mask_gradients(
            model,
            run.data.train,
            self.n_messages,
            loss=run.loss,
            seed=run.seed,
            device=run.device,
            progress=run.progress,
        )
        heads, neurons = self._search(model, run, gradients)
        pruned = keep_neurons(keep_heads(model, heads), neurons)
        if self.tune:
            chosen = [m.text for _, m in representative(model, run.data.train, self.n_messages, run.seed)]
            training = model.training
            tune(model.eval(), pruned.eval(), model.tokenizer.encode_batch(chosen))
            pruned.train(training)
        return pruned

    def _search(self, model: NLUModel, run: Run, gradients: MaskGradients) -> tuple[Kept, Kept]:
        """Heads and neurons kept: the first two steps."""
        costs = self._costs(model, run, float(gradients.lengths.mean()))
        n_heads, n_neurons = (sum(g.shape[1] for g in kind) for kind in (gradients.heads, gradients.neurons))
        cost_head, cost_neuron = (c if may else 0.0 for c, may in zip(costs, (self.heads, self.neurons), strict=True))
        budget = self.keep * (cost_head * n_heads + cost_neuron * n_neurons)
        kept = search(fisher(gradients.heads), fisher(gradients.neurons), (cost_head, cost_neuron), budget)
        if self.swap:
            kept = (_swapped(gradients.heads, kept[0]), _swapped(gradients.neurons, kept[1]))
        return kept

    def _costs(self, model: NLUModel, run: Run, tokens: float) -> tuple[float, float]:
        """What a head and a neuron cost: multiplications of a message of so many tokens, or milliseconds."""
        config, shapes = model.encoder.config, model.encoder.config.transformer_shapes("mask_search")
        if self.cost == "flops":
            head = tokens * (4 * config.hidden * config.head_size + 2 * tokens * config.head_size)
            return head, tokens * 2 * config.hidden
        clock = Clock(model, [m.text for m in run.data.train], INT8, run.folder)

        def share(heads: bool, neurons: bool) -> float:
            layers = (LayerShape(heads=heads * s.heads, ffn=neurons * s.ffn) for s in shapes)
            return clock.share(replace(config, layers=tuple(layers)))

        bare = share(False, False)
        n_heads, n_neurons = sum(s.heads for s in shapes), sum(s.ffn for s in shapes)
        # A share of the dense model's time is as good as milliseconds. What takes no time stays.
        head = max(0.0, share(True, False) - bare) / max(n_heads, 1)
        return head, max(0.0, share(False, True) - bare) / max(n_neurons, 1)


def _swapped(gradients: list[np.ndarray], kept: Kept) -> Kept:
    return {i: rearranged(g, kept[i]) for i, g in enumerate(gradients)}
