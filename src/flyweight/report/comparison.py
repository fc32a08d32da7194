"""Models side by side on the same messages: quality, flips against the first, size, milliseconds.

The first model is the parent: losses and flips are counted against it, speed-ups are its mean time over theirs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flyweight.answers import Answer, Answerer
from flyweight.data.messages import Message
from flyweight.errors import ConfigError
from flyweight.measure import memory
from flyweight.measure.latency import Latency, compare, ratio, single_thread, throughput
from flyweight.measure.quality import Quality, ask, evaluate_answers
from flyweight.progress import bar

N_THROUGHPUT = 256  # messages a model answers in batches


@dataclass(frozen=True)
class Contender:
    """One model of a comparison: its name, what executes it, where it lies on disk (None: only in memory).

    child=False marks a rival: it was not made from the parent, so neither flips nor losses are counted.
    """

    name: str
    engine: str
    model: Answerer
    path: Path | None = None
    child: bool = True

    @property
    def tags_entities(self) -> bool:
        """Has it an entity head? A model's labels say so; what has no labels (the classic line) answers intents."""
        labels = getattr(self.model, "labels", None)
        return labels is not None and bool(labels.entity_labels)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    tags_entities: it has an entity head. speedup: parent's mean time / this one's; None where time was not measured.
    """

    name: str
    engine: str
    tags_entities: bool
    quality: Quality
    size_bytes: int | None
    latency: Latency | None
    speedup: float | None

    @property
    def scores_intents(self) -> bool:
        """Are there intent scores to show? Not of messages without intents, nor of a model without."""
        return self.quality.n_intent_messages > 0

    @property
    def scores_spans(self) -> bool:
        """Is there a span F1 to show? An entity head that finds none of the gold spans has one: 0."""
        return self.tags_entities and self.quality.n_gold_spans + self.quality.n_predicted_spans > 0

    def to_dict(self) -> dict[str, Any]:
        """JSON form, flips included."""
        return {
            "name": self.name,
            "engine": self.engine,
            "tags_entities": self.tags_entities,
            "quality": self.quality.to_dict(),
            "size_bytes": self.size_bytes,
            "latency": self.latency.to_dict() if self.latency else None,
            "speedup": self.speedup,
        }


def comparison(
    contenders: Sequence[Contender], messages: Sequence[Message], *, n_latency_calls: int = 0, progress: bool = True
) -> list[Row]:
    """Ask every contender every message; time them interleaved on one thread if n_latency_calls > 0.

    Errors: ConfigError when two contenders to be timed have one name.
    """
    if n_latency_calls:
        check_names([c.name for c in contenders])
    texts = [m.text for m in messages]
    answers: list[list[Answer]] = []
    with bar("asking", len(texts) * len(contenders), show=progress) as advance:
        for c in contenders:
            answers.append(ask(c.model, texts, functools.partial(advance, note=c.name)))
    timed: dict[str, Latency] = {}
    if n_latency_calls:
        calls = {c.name: ask_one(c.model) for c in contenders}
        with single_thread(), bar("timing", n_latency_calls, show=progress) as advance:
            timed = compare(calls, texts, n_calls=n_latency_calls, progress=lambda *_: advance(1))
    rows = []
    for i, (c, found) in enumerate(zip(contenders, answers, strict=True)):
        quality = evaluate_answers(found, messages, against=answers[0] if i and c.child else None)
        latency = timed.get(c.name)
        speedup = ratio(timed[contenders[0].name], latency).of_means if latency else None
        size_bytes = memory.disk_bytes(c.path) if c.path else None
        rows.append(Row(c.name, c.engine, c.tags_entities, quality, size_bytes, latency, speedup))
    return rows


def check_names(names: Sequence[str]) -> None:
    """Refuse a name that is given twice: times are kept by name. Errors: ConfigError."""
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice; allowed: each model once")


def ask_one(model: Answerer) -> Callable[[str], object]:
    """What is timed: one message in, one answer out."""
    return lambda text: model.answers([text])


@dataclass(frozen=True)
class Timing:
    """Time and memory of one model. speedup: the first model's mean time / this one's; memory of a .fly file only."""

    model: str
    engine: str
    latency: Latency
    speedup: float
    messages_per_second: float
    size_bytes: int | None
    serving_memory_mb: float | None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, the latency's figures beside the others."""
        return {k: v for k, v in vars(self).items() if k != "latency"} | self.latency.to_dict()


def timing(
    contenders: Sequence[Contender], texts: Sequence[str], *, n_calls: int, progress: bool = True
) -> list[Timing]:
    """Latency (batch 1), throughput and serving memory, on one thread, interleaved. Errors: ConfigError (names)."""
    check_names([c.name for c in contenders])
    calls = {c.name: ask_one(c.model) for c in contenders}
    with single_thread(), bar("timing", n_calls, show=progress) as advance:
        timed = compare(calls, texts, n_calls=n_calls, progress=lambda *_: advance(1))
        per_second = [throughput(c.model.answers, texts[:N_THROUGHPUT]) for c in contenders]
    found = []
    for c, rate in zip(contenders, per_second, strict=True):
        latency = timed[c.name]
        speedup = ratio(timed[contenders[0].name], latency).of_means
        size_bytes = memory.disk_bytes(c.path) if c.path else None
        serving_mb = memory.serving_memory(c.path).resident_mb if c.path and c.path.suffix == ".fly" else None
        found.append(Timing(c.name, c.engine, latency, speedup, rate, size_bytes, serving_mb))
    return found
