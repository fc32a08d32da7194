"""StructuredPruning: heads, neurons and layers go together until the model is as fast as wanted, by measured time.

    minimise sum_b kl[b, n_b]  with  ms(shape) <= target      b: attention and FFN of each layer, n_b heads or neurons

ms: of the native engine on this machine, token ids in, logits out, one thread, from a table of measured shapes
(analyse/shapes.py); kl: what the answers lose when block b alone is cut to n_b and fitted anew (analyse/structures.py).
In rounds, each the same factor faster: measure kl, choose by knapsack, cut, fit what is left to make up for the rest,
train. The last shape is timed as a whole, and cut further where the table promised too much. Every training learns the
dense model's logits and hidden states, also on transfer text; where layers have gone, a layer learns
what the next one that is left was given in the dense model.

Changes: physically smaller matrices, fewer layers: an ordinary float model, to be packed next. The speed-up is that of
the packed shape against the packed model that comes in. Needs: training messages; labels are a fifth of the loss.
Gives up: the choice sees 128 messages; a shape is fastest where it was measured.
Source: ZipLM, Kurtic et al. 2023, arXiv:2302.04089; layers and distillation as in CoFi, Xia et al. 2022,
arXiv:2204.00408.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, ClassVar

import numpy as np

from flyweight.analyse.shapes import Clock, ShapeTimes
from flyweight.analyse.structures import Choice, blocks_of, choices, cut
from flyweight.data.splits import sample
from flyweight.errors import ConfigError, FlyweightWarning
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import unpacked_copy
from flyweight.techniques.room import Run, check_choice, check_training, check_whole, retrained
from flyweight.training.loop import TrainingSettings, auto_epochs

GRAINS = ("heads", "neurons", "layers")
STRUCTURES = tuple("+".join(some) for n in (1, 2, 3) for some in combinations(GRAINS, n))
SPEEDUP = 4.0  # where neither a time nor a speed-up is given
N_FITTED, N_MEASURED = 384, 128  # training messages that what is left is fitted on; validation messages that kl is of
STEPS_BETWEEN, STEPS_LAST = 400, 6000  # trained between the rounds, and at the end where epochs is not given
BETWEEN_RATE = 0.3  # a short training at a high rate undoes more than it learns (docs/lab-notebook.md, 2026-11-22)
MARGIN = 0.99  # of the time wanted: what is aimed at, since clocks differ by a percent
N_STEPS_DOWN = 6  # where the whole is slower than its parts


@dataclass(frozen=True, kw_only=True)
class StructuredPruning:
    """Joint pruning to a time; without target_ms and speedup: speedup=4.

    target_ms: mean milliseconds of a message in the native engine on this machine when quiet, one thread, no tokenizer
    speedup: times as fast as the model that comes in, both packed alike; from 1 (nothing goes)
    structures: what may go: heads, neurons and layers, joined by +
    bits: of the encoder's weights when times are measured: 8 (int8), or codes of 4, 2 or 1
    rounds: of cutting, 1 to 20; between them 400 steps of training
    epochs: passes over messages and transfer text at the end, 0 to 1000; None aims at 6000 steps within 2 to 200 passes
    learning_rate: peak, in (0, 1); between rounds 0.3 of it
    transfer: messages of transfer text beside each training message, 0 to 100, that the dense model answers
    """

    target_ms: float | None = None
    speedup: float | None = None
    structures: str = "heads+neurons+layers"
    bits: int = 8
    rounds: int = 3
    epochs: int | None = None
    learning_rate: float = 5e-4
    transfer: int = 4
    ZERO: ClassVar[dict[str, Any] | None] = {"speedup": 1.0}

    def __post_init__(self) -> None:
        for name, low, allowed in (("target_ms", 0.0, "above 0"), ("speedup", 1.0, "from 1")):
            value = getattr(self, name)
            fine = value is None or (type(value) in (int, float) and low <= value < float("inf") and value > 0)
            if not fine:
                raise ConfigError(f"structured: {name} is {value!r}; allowed: none, or a number {allowed}")
        check_choice("structured", "structures", self.structures, STRUCTURES)
        check_choice("structured", "bits", self.bits, (8, 4, 2, 1))
        check_whole("structured", "rounds", self.rounds, 1, 20)
        check_training("structured", self.epochs, self.learning_rate, fewest=0)
        check_whole("structured", "transfer", self.transfer, 0, 100)
        if self.target_ms is not None and self.speedup is not None:
            raise ConfigError("structured: target_ms and speedup are given; give one of them")

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A smaller model: minutes of measuring, then a training. Interrupted, both go on from run.folder.

        A copy, and a warning, where the model is as fast as target_ms already. The receipt is told what was reached.
        Errors: ConfigError for packed or masked matrices, a time that cannot be reached, or no native engine; DataError
        without training messages.
        """
        if self.speedup == 1:
            return model.copy()
        model.encoder.config.transformer_shapes("structured")
        dense, model = model, unpacked_copy(model).to("cpu").eval()
        asked = sample(run.data.validation or run.data.train, N_MEASURED)
        clock = Clock(model, [m.text for m in run.data.validation or run.data.train], self.bits, run.folder)
        times = clock.table(run.progress)
        wanted = 1 / (self.speedup or SPEEDUP) if self.target_ms is None else self.target_ms / times.dense_ms
        if wanted >= 1:
            warnings.warn(
                f"structured: target_ms is {self.target_ms:g}, the model takes {times.dense_ms:.3g} ms as it is: "
                "nothing is cut; ask for less",
                FlyweightWarning,
                stacklevel=2,
            )
            return dense.copy()
        target = MARGIN * wanted
        drawn = np.random.default_rng(run.seed).permutation(len(run.data.train))[:N_FITTED]
        texts = [run.data.train[i].text for i in drawn]
        for number in range(1, self.rounds + 1):
            blocks = blocks_of(model, texts, asked, run.progress)
            found = choices(blocks, times, self.structures.split("+"))
            if found[0].share > target:
                self._refuse(found[0].share, times)
            last = number == self.rounds
            share = target ** (number / self.rounds)
            shape = _within(found, share)
            if last:
                shape, reached = self._timed(found, share, clock, times)
                run.said.update(self._reached(shape, wanted, reached, times))
            model = cut(model, blocks, shape.layers)
            model = self._trained(model, run, last)
        return model

    def _reached(self, shape: Choice, wanted: float, measured: float, times: ShapeTimes) -> dict[str, Any]:
        """For the receipt: milliseconds of shares of the dense model's time, and the heads x neurons that are left."""
        shares = {"dense_ms": 1.0, "wanted_ms": wanted, "predicted_ms": shape.share, "measured_ms": measured}
        return {
            **{name: round(share * times.dense_ms, 5) for name, share in shares.items()},
            "times_faster": round(1 / measured, 3),
            "bits": self.bits,
            "layers": [[layer.heads, layer.ffn] for layer in shape.layers if layer is not None],
        }

    def _timed(self, found: Sequence[Choice], target: float, clock: Clock, times: ShapeTimes) -> tuple[Choice, float]:
        """The best choice whose whole is fast enough, and its measured share of the time.

        A miss is said in one line, and the next is faster.
        """
        budget, reached = target, []
        for _ in range(N_STEPS_DOWN + 1):
            shape = _within(found, budget)
            kept = tuple(layer for layer in shape.layers if layer is not None)
            reached.append(clock.share(replace(clock.config, layers=kept)))
            if reached[-1] <= target or shape is found[0]:
                break
            warnings.warn(
                f"structured: a shape predicted to take {shape.share * times.dense_ms:.4g} ms takes "
                f"{reached[-1] * times.dense_ms:.4g} ms, wanted are {target * times.dense_ms:.4g}; one step further",
                FlyweightWarning,
                stacklevel=4,
            )
            budget = min(budget * target / reached[-1], np.nextafter(shape.share, 0.0))
        if reached[-1] * MARGIN > target:
            self._refuse(min(reached), times)
        return shape, reached[-1]

    def _refuse(self, share: float, times: ShapeTimes) -> None:
        """ConfigError: the fastest shape there is takes this share of the time."""
        name = "target_ms" if self.target_ms is not None else "speedup"
        value = self.target_ms or self.speedup or SPEEDUP
        limit = f"{share * times.dense_ms:.3g} ms" if self.target_ms is not None else f"{1 / share:.3g}"
        raise ConfigError(
            f"structured: {name} is {value:g}; with structures={self.structures} this model reaches {limit}; "
            "ask for less speed, or let more go"
        )

    def _trained(self, model: NLUModel, run: Run, last: bool) -> NLUModel:
        """Taught by the dense model."""
        n_messages = (1 + self.transfer) * len(run.data.train)
        n_steps = STEPS_LAST if last else STEPS_BETWEEN
        epochs = auto_epochs(n_messages, TrainingSettings.batch_size, n_steps, (1, 200))
        if self.epochs is not None:
            epochs = self.epochs if last else min(epochs, self.epochs)
        return retrained(
            model,
            run,
            epochs=epochs,
            learning_rate=self.learning_rate if last else BETWEEN_RATE * self.learning_rate,
            distil="hidden" if len(model.encoder.layers) else "logits",  # embeddings alone must become other ones
            transfer=self.transfer,
        )


def _within(found: Sequence[Choice], share: float) -> Choice:
    """The best choice within a share of the time; the fastest where none is."""
    return next((choice for choice in reversed(found) if choice.share <= share), found[0])
