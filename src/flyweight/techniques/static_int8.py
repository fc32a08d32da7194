"""Static int8: the steps of all activations are measured once, on messages, and stored; no scan of a token at run time.

    x8 = clamp(round(x / s_x), -127, 127)                    s_x = clip / 127, one a matrix; see training/calibration.py
    y[t, r] = s_x s_w[r] sum_c x8[t, c] W8[r, c] + b[r]
    attention: score = s_q s_k d^-1/2 sum q8 k8,  e8 = round(255 exp(score - max)),  out = s_v sum e8[t] v8[t] / sum e8

Smoothing (SmoothQuant) moves outliers of channels from activations into weights, where the float model stays the same:
    s[j] = max|X[:, j]|^a / max|W[:, j]|^(1 - a),  X / s, W * s;  1/s is folded into what makes X
It is offered where that is exact: attention.out (into V's rows of qkv), and ffn.down behind a ReLU (into up's rows).
Not for qkv and ffn.up, whose input is a LayerNorm's output that a post-norm residual also reads unscaled, nor for
ffn.down behind a GELU, which is not homogeneous: there outliers are left to the clip and to the fallback list.

Fallback: tensors whose static steps cost most stay as they were (matrices: a step a token; attention: float):
    cost[i] = sum (z_i - z)^2 / sum z^2     z the logits of the dynamic model, z_i with tensor i alone made static
The most expensive go first, until all that is left costs at most the bound, measured on validation messages without
their labels. `flyweight inspect` shows which they are.

Changes: float matrices to int8 rows; int8 and codes keep their form, unsmoothed. Needs messages, no labels. Gives up: a
message unlike those measured is clipped. BERT's trouble are outliers in the FFN's output and the residual sums.
Sources: Jacob et al. 2017, arXiv:1712.05877; Xiao et al. 2022, arXiv:2211.10438 (smoothing); Bondarenko et al. 2021,
arXiv:2109.12948 (outliers).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from flyweight.artifact import check_integer_only
from flyweight.data.messages import Message
from flyweight.errors import ArtifactError, ConfigError
from flyweight.forms import Int8, describe
from flyweight.forms.int8 import int8_rows
from flyweight.model.encoder import Layer
from flyweight.model.linear import Activations, Embedding, Linear, Recurrent, set_form
from flyweight.model.nlu import NLUModel, Part
from flyweight.progress import bar
from flyweight.techniques.room import Run, check_choice
from flyweight.tokenizer import Encoded
from flyweight.training.calibration import CALIBRATIONS, Observer, observe

N_COST_MESSAGES = 32  # what the fallback list is chosen by
Calibration = Literal["min-max", "average", "p99.9", "p99.99", "mse", "entropy"]


@dataclass(frozen=True, kw_only=True)
class StaticInt8:
    """8-bit weights and activations in steps that were measured beforehand.

    calibration: min-max | average | p99.9 | p99.99 | mse | entropy: what clip is made of the values seen
    n_messages: training messages to calibrate on, chosen by the seed, 16 to 100000
    smooth: SmoothQuant's alpha, above 0 and below 1 (0.5: activations and weights share), or None
    attention: also the products of attention (QK^T and PV) in int8
    embeddings: also the embedding rows as int8      heads: also the intent and entity heads
    fallback: bound of the relative squared error of the logits against dynamic int8, above 0 and below 1, or None; what
    stays dynamic for it is named in the receipt
    integer_only: also softmax, GELU, norms and sums in integers; then nothing is left out and fallback is None
    """

    calibration: Calibration = "p99.99"
    n_messages: int = 512
    smooth: float | None = None
    attention: bool = True
    embeddings: bool = True
    heads: bool = True
    fallback: float | None = 0.001
    integer_only: bool = False
    ZERO: ClassVar[dict[str, Any] | None] = None  # rounding always changes something

    def __post_init__(self) -> None:
        check_choice("static_int8", "calibration", self.calibration, CALIBRATIONS)
        n = self.n_messages
        if type(n) is not int or not 16 <= n <= 100_000:
            raise ConfigError(f"static_int8: n_messages is {n!r}; allowed: a whole number from 16 to 100000")
        for name in ("attention", "embeddings", "heads", "integer_only"):
            check_choice("static_int8", name, getattr(self, name), (True, False))
        for name in ("smooth", "fallback"):
            value = getattr(self, name)
            if value is not None and not (type(value) is float and 0 < value < 1):
                raise ConfigError(f"static_int8: {name} is {value!r}; allowed: none, or a number above 0 and below 1")
        if self.integer_only and not (self.attention and self.embeddings and self.heads and self.fallback is None):
            raise ConfigError(
                "static_int8: integer_only is True; allowed: "
                "only with attention, embeddings and heads true, and fallback none"
            )

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A copy with static steps.

        Costs one pass over the messages to calibrate on, two where smoothed; a fallback list a pass over 32 messages
        for each tensor (a minute or two for MiniLM on a busy core). Errors: ConfigError without any message.
        """
        model = dynamic(model.copy())
        encoded = chosen_messages(model, run.data.train or run.data.validation, self.n_messages, run.seed)
        if not encoded:
            raise ConfigError("static_int8 needs messages to calibrate on; the data have neither train nor validation")
        passes = 1 if self.smooth is None else 2
        with bar("calibration", passes * len(encoded), show=run.progress) as advance:
            if self.smooth is not None:
                smooth(model, observe(model, encoded, advance), self.smooth)
            self._pack(model)
            seen = observe(model, encoded, advance)
        choices = static_choices(model, seen, self.calibration, self._takes(), self.attention)
        if self.fallback is not None:
            # Validation messages: a model is surer of those that it was trained on, the same gaps look smaller there.
            judges = chosen_messages(model, run.data.validation or run.data.train, N_COST_MESSAGES, run.seed)
            kept = affordable(model, choices, judges, self.fallback, run.progress)
            if left := [choice.tensor for choice in choices if choice not in kept]:
                run.said.update(static=f"{len(kept)} of {len(choices)} tensors", dynamic=", ".join(left))
            choices = kept
        for choice in choices:
            choice.make(static=True)
        if self.integer_only:
            model.encoder.config = replace(model.encoder.config, integer_only=True)
            weights = {name: describe(form) | multiplies for name, form, multiplies in model.forms()}
            try:
                check_integer_only(model.describe(), weights, "static_int8: the model")
            except ArtifactError as error:
                raise ConfigError(str(error)) from error
        return model

    def _pack(self, model: NLUModel) -> None:
        """int8 rows for float matrices of the wanted parts."""
        for _, module, part in model.matrices():
            if part in self._takes() and module.form is None:
                form = int8_rows(module.weight.detach().float().cpu().numpy())
                set_form(module, form, "float" if isinstance(module, Embedding) else "int8")

    def _takes(self) -> set[Part]:
        """The parts of the model that are wanted."""
        others: dict[Part, bool] = {"embeddings": self.embeddings, "heads": self.heads}
        return {"encoder", *(part for part, wanted in others.items() if wanted)}


@dataclass(frozen=True)
class Choice:
    """A tensor that may be static: a matrix's input (one step), or an attention's Q, K, V (three).

    before: the matrix's activations where its input is not static.
    """

    matrix: str
    module: Linear
    steps: tuple[float, ...]
    before: Activations

    @property
    def tensor(self) -> str:
        """What people read."""
        return f"{self.matrix} (attention)" if len(self.steps) == 3 else self.matrix

    def make(self, static: bool) -> None:
        """Static, or as it was."""
        if len(self.steps) == 3:
            self.module.output_scales = (self.steps[0], self.steps[1], self.steps[2]) if static else None
        else:
            self.module.activations = "static" if static else self.before
            self.module.input_scale = self.steps[0] if static else None


def dynamic(model: NLUModel) -> NLUModel:
    """Static activations made dynamic, attention float (in place)."""
    model.encoder.config = replace(model.encoder.config, integer_only=False)
    for _, module, _ in model.matrices():
        if isinstance(module, Linear):
            if module.activations == "static":
                module.activations = "int8"
            module.input_scale = module.output_scales = None
    return model


def chosen_messages(model: NLUModel, messages: Sequence[Message], n: int, seed: int) -> list[Encoded]:
    """Up to n messages, tokenized, in an order drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(messages))[:n]
    return model.tokenizer.encode_batch([messages[i].text for i in order])


def static_choices(
    model: NLUModel, seen: dict[str, Observer], method: str, parts: Collection[Part], attention: bool
) -> list[Choice]:
    """Every tensor of the parts that has integers to multiply and was seen; what was not seen stays as it is."""
    found = []
    for name, module, part in model.matrices():
        if part not in parts or not isinstance(module, Linear) or not module.weight.numel():
            continue
        if isinstance(module, Recurrent):  # its step is a constant
            continue
        integer = isinstance(module.form, Int8) or getattr(module.form, "scale", None) is not None
        if integer and (step := seen[name].step(method)) is not None:
            found.append(Choice(name, module, (step,), module.activations))
        if attention and name.endswith(".qkv"):
            steps = [step for out in "qkv" if (step := seen[f"{name}.{out}"].step(method)) is not None]
            if len(steps) == 3:
                found.append(Choice(name, module, tuple(steps), module.activations))
    return found


# smoothing ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def smooth(model: NLUModel, seen: dict[str, Observer], alpha: float) -> None:
    """Fold smoothing factors into float matrices, in place, where the model stays the same. Packed ones are left."""
    for i, layer in enumerate(model.encoder.layers):
        if not isinstance(layer, Layer):  # a nonlinear function lies between what makes a channel and what takes it
            continue
        for makes, rows, takes, name in _pairs(layer, model.encoder.config.activation):
            channels = seen[f"layers.{i}.{name}"].channels
            if channels is None or makes.form is not None or takes.form is not None:
                continue
            largest = takes.weight.abs().amax(dim=0).cpu().numpy()
            factors = torch.from_numpy(smoothing(channels, largest, alpha)).to(takes.weight.device)
            makes.weight[rows].div_(factors[:, None])
            if makes.bias is not None:
                makes.bias[rows].div_(factors)
            takes.weight.mul_(factors[None, :])


def _pairs(layer: Layer, activation: str) -> list[tuple[Linear, slice, Linear, str]]:
    """(what makes the channels, its rows, what takes them, the taker's name) of the exact places of one layer."""
    attention, ffn = layer.attention, layer.ffn
    width = attention.heads * attention.head_size
    found = [(attention.qkv, slice(2 * width, 3 * width), attention.out, "attention.out")]
    if activation == "relu":
        found.append((ffn.up, slice(None), ffn.down, "ffn.down"))
    return found


def smoothing(x: np.ndarray, w: np.ndarray, alpha: float) -> np.ndarray:
    """s[j] = x[j]^a / w[j]^(1 - a), 1 where a channel is dead; x, w: largest absolute value of each channel, (C,)."""
    live = (x > 2.0**-60) & (w > 2.0**-60)
    found: np.ndarray = np.where(live, x, 1.0) ** alpha / np.where(live, w, 1.0) ** (1 - alpha)
    return found.astype(np.float32)


# the fallback list --------------------------------------------------------------------------------------------------


def affordable(
    model: NLUModel, choices: Sequence[Choice], encoded: Sequence[Encoded], bound: float, progress: bool = False
) -> list[Choice]:
    """The choices that may be static together at a cost of at most `bound`: the cheapest of them, as many as possible.

    len(choices) + log2(len(choices)) passes over the messages. The model ends dynamic, as it came.
    """
    parent = stacked(model, encoded)
    with bar("cost of static steps", len(choices), show=progress) as advance:
        costs = []
        for choice in choices:
            costs.append(cost(model, [choice], encoded, parent))
            advance()
    ranked = [choices[i] for i in np.argsort(costs, kind="stable")]
    low, high = 0, len(ranked)  # the first `low` together are within the bound; more than `high` are not
    if cost(model, ranked, encoded, parent) <= bound:
        low = high
    while high - low > 1:
        middle = (low + high) // 2
        within = cost(model, ranked[:middle], encoded, parent) <= bound
        low, high = (middle, high) if within else (low, middle)
    return ranked[:low]


def cost(model: NLUModel, static: Sequence[Choice], encoded: Sequence[Encoded], parent: np.ndarray) -> float:
    """sum (z' - z)^2 / sum z^2: z the parent's logits, z' with these choices static. The model ends dynamic."""
    for choice in static:
        choice.make(static=True)
    gap = stacked(model, encoded) - parent
    for choice in static:
        choice.make(static=False)
    return float(gap @ gap / max(float(parent @ parent), 2.0**-100))


def stacked(model: NLUModel, encoded: Sequence[Encoded]) -> np.ndarray:
    """All logits of messages, intents and tags, one after another, float64."""
    return np.concatenate([a.ravel() for row in model.logits(encoded) for a in row if a is not None]).astype(np.float64)
