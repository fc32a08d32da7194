"""The recipes of the students: of the headline, of the chart at equal milliseconds, of the ablations.

Every recipe starts from the float teacher (all-mpnet-base-v2, seed 0) and names who teaches: the teacher's int8 file in
the engine, which answers like it (results/real_data.json) and an order of magnitude sooner, or an assistant. Values are
chosen on validation messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import flyweight as fw
from flyweight.techniques.room import Technique


@dataclass(frozen=True)
class Sources:
    """What a recipe may name.

    name: the data set; teacher: the teacher's int8 file; file, folder: of another recipe, by label.
    """

    name: str
    teacher: str
    file: Callable[[str], str]
    folder: Callable[[str], str]


@dataclass(frozen=True)
class StudentRecipe:
    """steps: the techniques, for these sources; family: the line of the chart, "" for none.

    after: label of the recipe whose float model this one goes on from, instead of the teacher's.
    """

    steps: Callable[[Sources], tuple[Technique, ...]]
    family: str = ""
    after: str | None = None


@dataclass(frozen=True)
class Target:
    """What one of the headline's sentences promises.

    speedup: times PyTorch fp32; losses in percent, a set's mean over seeds: intent_percent and span_percent bound the
    mean over the sets, worst_percent every metric of every set and seed, None for no such bound.
    """

    speedup: float
    intent_percent: float
    span_percent: float
    worst_percent: float | None = None


TARGETS = {
    "100x": Target(speedup=100, intent_percent=0.3, span_percent=1.0),
    "1000x": Target(speedup=1000, intent_percent=1.5, span_percent=1.5, worst_percent=2.5),
}


@dataclass(frozen=True)
class Learning:
    """How a student of this file learns: fields of `distillation`."""

    losses: str = "logits"
    soft: float = 0.8
    transfer: int = 30
    epochs: int = 2
    learning_rate: float | None = None

    def step(self, teacher: str) -> Technique:
        """The technique, with this teacher."""
        return fw.Distillation(
            losses=self.losses,
            soft=self.soft,
            transfer=self.transfer,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            teacher=teacher,
        )


# A student that knows English already. On BANKING77's validation messages its agreement with the teacher was still
# rising after 3 passes over 8 messages of transfer text a message (docs/lab-notebook.md).
PRETRAINED = Learning(transfer=20, epochs=6, soft=1.0)
SMALL = Learning()
LABELLED = Learning(transfer=0, epochs=62)  # as much text as SMALL: 2 passes over 1 + 30 messages a message
ASSISTANT = "assistant"  # the recipe whose file teaches the small ones; its F1 lies near the teacher's
# Layers x hidden of the chart's transformers; deep and thin ones take the time of the shallow one beside them.
SHALLOW = {"1 x 128": (1, 128), "2 x 128": (2, 128), "2 x 192": (2, 192), "3 x 256": (3, 256), "6 x 384": (6, 384)}
DEEP = {"4 x 64": (4, 64), "6 x 96": (6, 96), "8 x 128": (8, 128), "12 x 192": (12, 192)}
BILSTM = {"BiLSTM 64": 64, "BiLSTM 128": 128, "BiLSTM 256": 256}
CNN = {"CNN 128": 128, "CNN 256": 256, "CNN 512": 512}
BAG = {"bag 64": 64, "bag 256": 256}


def of_teacher(learning: Learning, **student: Any) -> StudentRecipe:
    """A student that the float teacher is cut to, taught by the teacher's file."""
    return StudentRecipe(lambda of: (fw.Student(**student), learning.step(of.teacher)))


def of_assistant(learning: Learning, **student: Any) -> StudentRecipe:
    """A student that the assistant is cut to, taught by the assistant's file."""
    return StudentRecipe(
        lambda of: (fw.Student(**student), learning.step(of.file(ASSISTANT))), after=f"{ASSISTANT}, float"
    )


def of_hidden(learning: Learning, **student: Any) -> StudentRecipe:
    """As of_assistant, taught by the assistant's float model, which shows its hidden states."""
    floats = f"{ASSISTANT}, float"
    return StudentRecipe(lambda of: (fw.Student(**student), learning.step(of.folder(floats))), after=floats)


def with_int8(label: str, recipe: StudentRecipe, family: str = "") -> dict[str, StudentRecipe]:
    """The recipe's float model as `label, float`, and the int8 file that is measured as `label`."""
    floats = f"{label}, float"
    return {floats: recipe, label: StudentRecipe(lambda of: (fw.Int8(),), family=family, after=floats)}


FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "transformer, shallow": {label: {"layers": n, "hidden": d} for label, (n, d) in SHALLOW.items()},
    "transformer, deep and thin": {label: {"layers": n, "hidden": d} for label, (n, d) in DEEP.items()},
    "BiLSTM": {label: {"kind": "bilstm", "layers": 1, "hidden": d} for label, d in BILSTM.items()},
    "CNN": {label: {"kind": "cnn", "layers": 1, "hidden": d} for label, d in CNN.items()},
    "bag": {label: {"kind": "bag", "hidden": d} for label, d in BAG.items()},
}
STUDENTS: dict[str, StudentRecipe] = {
    **with_int8(ASSISTANT, of_teacher(PRETRAINED, base="minilm")),
    "100x": StudentRecipe(lambda of: (fw.StructuredPruning(speedup=2), fw.Int8()), after=f"{ASSISTANT}, float"),
    **with_int8("1000x", of_assistant(SMALL, layers=1, hidden=128)),
    **with_int8("DistilBERT shape", of_teacher(PRETRAINED, layers=6), family="DistilBERT shape"),
    "smallest": StudentRecipe(
        lambda of: (fw.Vocabulary(common=0), fw.TrainedCodes(encoder=16, embeddings=16)), after="1000x, float"
    ),
}
for _family, _shapes in FAMILIES.items():
    for _label, _shape in _shapes.items():
        STUDENTS |= with_int8(_label, of_teacher(SMALL, **_shape), family=_family)

# Question -> (label with, label without). Both are cut from one model and pass over as much text, where transfer text
# is as much as was asked for.
BASELINE = "2 x 128"
ABLATIONS: dict[str, tuple[str, str]] = {
    # Transfer text has no labels, so both learn from the training messages alone. No teacher, no agreement with it: the
    # epoch is chosen by F1, which is part of the ingredient.
    "distillation itself": ("without transfer text", "without distillation"),
    "transfer text": (BASELINE, "without transfer text"),
    "assistant": ("with assistant", BASELINE),
    "hints": ("with hints", "without hints"),
}
_SHAPE = FAMILIES["transformer, shallow"][BASELINE]
STUDENTS |= {
    # Labels alone: `soft` leaves the teacher no say.
    **with_int8("without distillation", of_teacher(replace(LABELLED, soft=0.0), **_SHAPE)),
    **with_int8("without transfer text", of_teacher(LABELLED, **_SHAPE)),
    # Cut from the first teacher, as BASELINE is.
    **with_int8("with assistant", StudentRecipe(lambda of: (fw.Student(**_SHAPE), SMALL.step(of.file(ASSISTANT))))),
    # Hidden states can be learnt only from a model that shows them: the assistant's folder in PyTorch, which is slow.
    # The stage of hints is a quarter of 4 passes, so 4 with it are 5 without.
    **with_int8("with hints", of_hidden(Learning(losses="hints+logits", transfer=5, epochs=4), **_SHAPE)),
    **with_int8("without hints", of_hidden(Learning(transfer=5, epochs=5), **_SHAPE)),
}

# Title -> (label, label) at equal milliseconds: the shape that `flyweight suggest` proposes, and the one that is scaled
# down uniformly.
SUGGESTED: dict[str, tuple[str, str]] = {}


def seeds_of(name: str) -> tuple[int, ...]:
    """Three student seeds on BANKING77, one elsewhere."""
    return (0, 1, 2) if name == "banking77" else (0,)
