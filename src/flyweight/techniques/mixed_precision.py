"""Mixed precision: every matrix gets its own number of bits; those that bear it get fewer.

    minimise sum_m kl[m, b_m]  with  sum_m cost[m, b_m] <= budget          b_m in 8, 4, 3, 2, 1

kl: the sensitivity of matrix m at b bits (see analyse/sensitivity.py), measured with all others float; cost: bits a
weight, bytes in the file, or milliseconds of the engine on this machine; solved exactly as a multiple-choice knapsack.
Small losses of single matrices nearly add up; large ones do not, so a bound on F1 is held to the whole model's
measured F1, not to the sum; bytes and milliseconds are measured on the packed whole, too, and the budget is lowered by
what they are above the limit.

Changes: 8 bits: int8 rows; fewer: k-means codes with int8 centres, one table a row; int8 activations. Codes of 3 bits
save bytes, not time (the engine multiplies them as int8). Embedding rows cost bytes, no time.
Needs: messages (labels only for a bound on F1; training messages for rounding by GPTQ).  Gives up: trains nothing.
Sources: knapsack: Kellerer, Pferschy & Pisinger 2004; bits by measured sensitivity: Dong et al. 2019, arXiv:1905.03696.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from flyweight.analyse.costs import file_bytes, milliseconds, other_bytes, whole_megabytes, whole_milliseconds
from flyweight.analyse.knapsack import Frontier, frontier
from flyweight.analyse.quantized import BITS, Quantized, set_bits
from flyweight.analyse.sensitivity import Measured, loss_percent, matrices_of, sensitivity
from flyweight.data.messages import Message
from flyweight.data.splits import sample
from flyweight.errors import ConfigError
from flyweight.forms import Codes, Form
from flyweight.model.linear import Embedding, Linear
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.techniques.room import Run, check_choice
from flyweight.training.compensated import rounded
from flyweight.training.inputs import second_moment, stages

BUDGETS = ("max_average_bits", "max_size_mb", "max_ms", "max_f1_drop")
AVERAGE_BITS = 3.0
N_ROUNDED, DAMP = 512, 0.01  # training messages for GPTQ and what is added to their second moments, as its room does
N_STEPS_DOWN = 3  # where a file turns out larger or slower than the sum of its matrices
N_CHECKED = 1000  # messages that a bound on F1 is held to, as many as a receipt is measured on
Table = dict[str, int]  # matrix -> bits


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Bits by sensitivity, under one budget; without any: max_average_bits=3.

    max_average_bits: mean bits a weight of the encoder's matrices, without tables and scales (MiniLM: 0.2 bits more);
    embeddings and heads are int8 then
    max_size_mb: of the file, in 10^6 bytes
    max_ms: mean milliseconds of a message in the native engine on this machine, tokenizer included, one thread
    max_f1_drop: percent of macro-F1 and of span F1, measured on the validation messages (without any:
    on training messages); the smallest file within it
    lowest_bits: no matrix gets fewer
    messages: sensitivity is measured on at most about so many
    rounding: of the codes, once the bits are chosen: gptq (see there; layer by layer, on training messages; where a
    bound on F1 would be broken: nearest) | nearest
    """

    max_average_bits: float | None = None
    max_size_mb: float | None = None
    max_ms: float | None = None
    max_f1_drop: float | None = None
    lowest_bits: int = 1
    messages: int = 500
    rounding: Literal["gptq", "nearest"] = "gptq"
    ZERO: ClassVar[dict[str, Any] | None] = None  # int8 rounds at the least

    def __post_init__(self) -> None:
        for name in BUDGETS:
            value = getattr(self, name)
            if value is not None and (type(value) not in (int, float) or not 0 < value < float("inf")):
                raise ConfigError(f"mixed_precision: {name} is {value!r}; allowed: none, or a number above 0")
        check_choice("mixed_precision", "lowest_bits", self.lowest_bits, (1, 2, 3, 4))
        if type(self.messages) is not int or self.messages < 1:
            raise ConfigError(f"mixed_precision: messages is {self.messages!r}; allowed: a whole number from 1")
        check_choice("mixed_precision", "rounding", self.rounding, ("gptq", "nearest"))
        given = [name for name in BUDGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ConfigError(f"mixed_precision: {' and '.join(given)} are given; give one budget")

    @property
    def budget(self) -> tuple[str, float]:
        """The field that is given, and its value."""
        for name in BUDGETS:
            if (value := getattr(self, name)) is not None:
                return name, float(value)
        return "max_average_bits", AVERAGE_BITS

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy with packed matrices. MiniLM takes minutes: a forward pass a matrix and width; packed ones start over.

        Errors: ConfigError where the budget cannot be met or not be measured, or no native engine is there to time.
        """
        model = model.copy().to("cpu").unpack().eval()
        messages = sample(run.data.validation or run.data.train, N_CHECKED)
        if self.budget[0] == "max_f1_drop":
            self._check_labels(model, messages)
        forms = Quantized(model)
        bits = [b for b in BITS if b >= self.lowest_bits]
        found = sensitivity(
            model,
            sample(messages, self.messages),
            parts=matrices_of(model),
            bits=bits,
            quantized=forms,
            folder=run.folder,
            progress=run.progress,
        )
        losses = [[found.cell(name, b).kl for b in bits] for name, _, _ in model.matrices()]
        measured = None
        if self.budget[0] == "max_f1_drop":
            best = frontier(losses, _costs(model, "max_size_mb", bits))
            measured = Measured(model, messages)
            table = self._within_drop(best, bits, forms, measured)
        else:
            table = self._within_budget(model, run, losses, bits, forms)
        packed = forms.of(table)
        if self.rounding == "gptq" and run.data.train:
            better = compensate(model, packed, run)
            if measured is None or _drop(measured, better) <= self.budget[1]:
                packed = better
        return _with_forms(model, packed)

    def _check_labels(self, model: NLUModel, messages: Sequence[Message]) -> None:
        """Errors: ConfigError where there is nothing to measure a score of the model's on."""
        there = {"intents": any(m.intent is not None for m in messages), "entities": any(m.entities for m in messages)}
        answered = {"intents": bool(model.labels.intents), "entities": model.tag_head is not None}
        if lacking := [kind for kind in there if answered[kind] and not there[kind]]:
            raise ConfigError(
                f"mixed_precision: max_f1_drop is {self.budget[1]:g}; none of the {len(messages)} messages to "
                f"measure it on has {' or '.join(lacking)}, which the model answers; give labelled data, or another "
                f"budget: {', '.join(BUDGETS[:-1])}"
            )

    def _within_budget(
        self, model: NLUModel, run: Run, losses: list[list[float]], bits: list[int], forms: Quantized
    ) -> Table:
        """The least predicted loss within a budget of bits, bytes or milliseconds."""
        name, limit = self.budget
        fixed, unit = 0.0, "bits a weight"
        measure: Callable[[NLUModel], float] | None = None
        if name == "max_size_mb":
            fixed, unit = other_bytes(model) / 1e6, "MB"
            costs = _costs(model, name, bits)
            measure = whole_megabytes
        elif name == "max_ms":
            texts = [m.text for m in sample(run.data.validation or run.data.train, self.messages)]
            timed = milliseconds(model, texts, bits, run.folder, run.progress)
            fixed, unit = timed.int8_ms, "ms"
            costs = [[timed.of(n, m, b) for b in bits] for n, m, _ in model.matrices()]
            measure = partial(whole_milliseconds, texts=texts, int8_ms=timed.int8_ms)
        else:
            costs = _costs(model, name, bits)
        best = frontier(losses, costs)
        at = best.within(limit - fixed)
        if at is None:
            raise ConfigError(
                f"mixed_precision: {name} is {limit:g}; the least for this model with lowest_bits={self.lowest_bits} "
                f"is {best.costs[0] + fixed:.3g} {unit}; give more"
            )
        if measure is None:  # bits add up
            return _table(model, bits, best, at)
        reached: list[float] = []
        while len(reached) <= N_STEPS_DOWN:
            table = _table(model, bits, best, at)
            reached.append(measure(_with_forms(model, forms.of(table))))
            if reached[-1] <= limit:
                return table
            if at == 0:  # there is none that costs less
                break
            at = best.within(best.costs[at] - (reached[-1] - limit)) or 0
        raise ConfigError(
            f"mixed_precision: {name} is {limit:g}; the least that was reached with lowest_bits={self.lowest_bits}, "
            f"packed and measured, is {min(reached):.4g} {unit}; give more"
        )

    def _within_drop(self, best: Frontier, bits: list[int], forms: Quantized, measured: Measured) -> Table:
        """Bisection over the sizes: the smallest of those measured that is within the drop."""
        _, limit = self.budget

        def drop(at: int) -> float:
            return _drop(measured, forms.of(_table(forms.model, bits, best, at)))

        low, high = -1, len(best.costs) - 1  # high is measured to be within, low is measured not to be, or -1
        least = drop(high)
        if least > limit:
            raise ConfigError(
                f"mixed_precision: max_f1_drop is {limit:g}; with {bits[0]} bits everywhere this model loses "
                f"{least:.3g}% already; give more"
            )
        while high - low > 1 and (low < 0 or best.costs[high] > 1.005 * best.costs[low]):
            middle = (low + high) // 2
            low, high = (low, middle) if drop(middle) <= limit else (middle, high)
        return _table(forms.model, bits, best, high)


def _with_forms(model: NLUModel, forms: Mapping[str, Form]) -> NLUModel:
    """A copy that computes with these."""
    model = model.copy()
    for name, module, _ in model.matrices():
        set_bits(module, forms[name])
    return model


def _drop(measured: Measured, packed: dict[str, Form]) -> float:
    """Percent of macro-F1 or of span F1, whichever falls more, that the whole model loses."""
    cell = measured.cell("all", 0, packed)
    return max(loss_percent(getattr(measured.quality, m), getattr(cell, m)) for m in ("intent_macro_f1", "span_f1"))


def compensate(model: NLUModel, packed: dict[str, Form], run: Run) -> dict[str, Form]:
    """The same bits, each code rounded so that later columns make up for its error, behind layers that are rounded.

    8-bit matrices and embeddings stay as they are.
    """
    model = model.copy()
    modules = {name: module for name, module, _ in model.matrices()}
    found = dict(packed)
    for name, module in modules.items():
        if isinstance(module, Embedding):
            set_bits(module, packed[name])
    drawn = np.random.default_rng(run.seed).permutation(len(run.data.train))[:N_ROUNDED]
    encoded = model.tokenizer.encode_batch([run.data.train[i].text for i in drawn])
    with bar("gptq", sum(isinstance(m, Linear) for m in modules.values()), show=run.progress) as advance:
        for stage in stages(model, encoded):
            for name in stage.names:
                module = modules[name]
                if isinstance(module, Linear) and isinstance(packed[name], Codes):
                    h = second_moment(module, stage.replay)
                    w, k = module.weight.detach(), 2 ** packed[name].bits
                    found[name] = rounded(w, k, h, "kmeans", DAMP, True, module.mask)
                set_bits(module, found[name])
                advance(note=name)
    return found


def _table(model: NLUModel, bits: Sequence[int], best: Frontier, at: int) -> Table:
    """matrix -> bits of one point."""
    names = [name for name, _, _ in model.matrices()]
    return {name: bits[choice] for name, choice in zip(names, best.choices[at], strict=True)}


def _costs(model: NLUModel, budget: str, bits: Sequence[int]) -> list[list[float]]:
    """A row a matrix: MB in the file, or its share in the encoder's mean bits a weight."""
    if budget == "max_size_mb":
        return [[file_bytes(name, module, b) / 1e6 for b in bits] for name, module, _ in model.matrices()]
    n_weights = sum(module.weight.numel() for _, module, part in model.matrices() if part == "encoder")
    return [
        [b * module.weight.numel() / n_weights if part == "encoder" else 0.0 for b in bits]
        for _, module, part in model.matrices()
    ]
