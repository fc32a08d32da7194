"""Sensitivity: which part of a model bears how few bits? One part at a time is quantized, all others stay float.

    kl[part, bits] = mean_x KL(p(x) || p'(x)) + mean_w KL(t(w) || t'(w))        nats; p, t: answers of the float model

p(x): intents of message x (at the model's temperature), t(w): tags of word w, p' and t' with the part quantized
(8 bits: int8 rows, fewer: k-means codes with int8 centres; int8 activations). KL moves before any answer does, so it
ranks parts where F1, which moves in steps of a message, cannot; small losses of several parts nearly add up.
Macro-F1, span F1 and flips stand beside it.
Cost: a cell is a forward pass from the changed layer on. The hidden states of all layers are kept: 0.4 GB for 500
messages of 20 tokens at BERT-base's size.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flyweight.analyse.quantized import BITS, Quantized, set_bits
from flyweight.answers import Answer, softmax
from flyweight.data.messages import Message
from flyweight.errors import ConfigError
from flyweight.forms import Form
from flyweight.measure.quality import evaluate_answers
from flyweight.model.nlu import EVAL_BATCH, NLUModel, pad
from flyweight.progress import bar
from flyweight.tokenizer import Encoded

MAX_MESSAGES = 500  # KL of 500 messages ranks parts; more only costs time
ALL = "all parts"

Parts = dict[str, tuple[str, ...]]  # part -> names of its matrices
Logits = list[tuple[np.ndarray, np.ndarray | None]]


@dataclass(frozen=True)
class Cell:
    """One part at some bits. kl in nats; n_flips: messages whose answer (intent or spans) changed."""

    part: str
    bits: int
    kl: float
    intent_macro_f1: float
    span_f1: float
    n_flips: int


@dataclass(frozen=True)
class Sensitivity:
    """All cells, part by part, and the float model's scores on the same messages.

    n_gold_intents, n_gold_spans: what there was to score. identity: of model, messages and quantizer.
    """

    identity: str
    n_messages: int
    n_gold_intents: int
    n_gold_spans: int
    intent_macro_f1: float
    span_f1: float
    cells: tuple[Cell, ...]

    @property
    def parts(self) -> list[str]:
        """Names in order."""
        return list(dict.fromkeys(cell.part for cell in self.cells))

    @property
    def bits(self) -> list[int]:
        """Widths in order."""
        return list(dict.fromkeys(cell.bits for cell in self.cells))

    @property
    def metrics(self) -> list[str]:
        """The scores that there is something to say about: intent_macro_f1, span_f1."""
        scored = {"intent_macro_f1": self.n_gold_intents, "span_f1": self.n_gold_spans}
        return [name for name, n in scored.items() if n and getattr(self, name) > 0]

    def cell(self, part: str, bits: int) -> Cell:
        """One cell."""
        return next(cell for cell in self.cells if (cell.part, cell.bits) == (part, bits))

    def loss_percent(self, cell: Cell, metric: str) -> float:
        """100 (float - cell) / float of a score; negative where the part's rounding helped."""
        return loss_percent(getattr(self, metric), getattr(cell, metric))

    def to_dict(self) -> dict[str, Any]:
        """JSON form, with the losses of each cell."""
        losses = [{f"{m}_loss_percent": self.loss_percent(cell, m) for m in self.metrics} for cell in self.cells]
        cells = [asdict(cell) | loss for cell, loss in zip(self.cells, losses, strict=True)]
        return asdict(self) | {"cells": cells, "parts": self.parts, "bits": self.bits}


def loss_percent(parent: float, child: float) -> float:
    """100 (parent - child) / parent; 0 where the parent has nothing to lose."""
    return 100 * (parent - child) / parent if parent else 0.0


def parts_of(model: NLUModel) -> Parts:
    """Embedding tables, attention and FFN of each layer, heads; last, all of them together."""
    found: dict[str, list[str]] = {}
    for name, _, _ in model.matrices():
        part = name.rpartition(".")[0] if name.startswith("layers.") else name
        found.setdefault(part, []).append(name)
    return {part: tuple(names) for part, names in found.items()} | {ALL: tuple(n for n, _, _ in model.matrices())}


def matrices_of(model: NLUModel) -> Parts:
    """Every matrix as a part of its own."""
    return {name: (name,) for name, _, _ in model.matrices()}


def sensitivity(
    model: NLUModel,
    messages: Sequence[Message],
    *,
    parts: Parts | None = None,
    bits: Sequence[int] = BITS,
    quantized: Quantized | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Sensitivity:
    """Quantize one part after the other and measure. A model that is packed counts as the float model it decodes to.

    parts: `parts_of` by default. quantized: of this model in float, with another quantizer, or to be used again.
    folder: each cell is kept there as soon as it is measured, and not measured again for the same model, messages and
    quantizer, so that an interrupted run goes on. Errors: ConfigError.
    """
    if not messages:
        raise ConfigError("no messages to measure sensitivity on; give data with a validation or training part")
    forms = quantized or Quantized(model.copy().to("cpu").unpack())
    chosen = parts_of(model) if parts is None else parts
    measured = Measured(forms.model, messages)
    identity = identity_of(measured.model, messages, forms)
    kept = _Kept(Path(folder) / f"cells-{identity[:12]}.jsonl" if folder else None)
    wanted = [(part, b) for part in chosen for b in bits]
    todo = [key for key in wanted if key not in kept.cells]
    with bar("sensitivity", len(wanted), len(wanted) - len(todo), progress) as advance:
        for part, names in chosen.items():
            widths = [b for b in bits if (part, b) in todo]
            forms.prepare((name, b) for b in widths for name in names)
            for b in widths:
                kept.add(measured.cell(part, b, forms.of(dict.fromkeys(names, b))))
                advance(1, f"{part} at {b} bit{'s' * (b > 1)}")
    q = measured.quality
    return Sensitivity(
        identity=identity,
        n_messages=len(messages),
        n_gold_intents=q.n_intent_messages,
        n_gold_spans=q.n_gold_spans if measured.model.tag_head is not None else 0,
        intent_macro_f1=q.intent_macro_f1,
        span_f1=q.span_f1,
        cells=tuple(kept.cells[key] for key in wanted),
    )


def identity_of(model: NLUModel, messages: Sequence[Message], forms: Quantized) -> str:
    """SHA-256 of weights, vocabulary, labels, messages and the quantizer's name."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode() + np.ascontiguousarray(tensor.numpy()).tobytes())
    sha.update(model.tokenizer.source.encode())
    sha.update(json.dumps([model.describe(), [repr(m) for m in messages], forms.quantizer.__qualname__]).encode())
    return sha.hexdigest()


def divergence(parent: np.ndarray, child: np.ndarray) -> np.ndarray:
    """KL(softmax(parent) || softmax(child)) of each row; logits (N, C) -> (N,) nats. 0 where there are no classes."""
    p, q = softmax(parent), softmax(child)
    tiny = np.finfo(
        np.float64
    ).tiny  # a class that the child rules out wholly costs 708 nats a unit, not infinitely many
    return np.maximum((p * (np.log(np.maximum(p, tiny)) - np.log(np.maximum(q, tiny)))).sum(axis=-1), 0.0)


class Measured:
    """Encoded messages, and a float model's hidden states and answers; works on a copy of it."""

    def __init__(self, model: NLUModel, messages: Sequence[Message]):
        self.model, self.messages = model.copy().eval(), messages
        self.modules = {name: module for name, module, _ in self.model.matrices()}
        self.encoded: list[Encoded] = model.tokenizer.encode_batch([m.text for m in messages])
        order = sorted(range(len(messages)), key=lambda i: len(self.encoded[i].ids))
        self.batches = [order[at : at + EVAL_BATCH] for at in range(0, len(order), EVAL_BATCH)]
        self.padded = [pad([self.encoded[i].ids for i in batch]) for batch in self.batches]
        with torch.no_grad():
            self.states = [self.model.encoder.hidden_states(ids, mask) for ids, mask in self.padded]
        self.parent = self.logits(len(self.model.encoder.layers))
        self.parent_answers = self.answers(self.parent)
        self.quality = evaluate_answers(self.parent_answers, messages)

    @torch.no_grad()
    def cell(self, part: str, bits: int, forms: dict[str, Form]) -> Cell:
        """Quantize, answer, and set the float weights back."""
        floats = {name: self.modules[name].weight.clone() for name in forms}
        for name, form in forms.items():
            set_bits(self.modules[name], form)
        child = self.logits(min(self._first_layer(name) for name in forms))
        for name, weight in floats.items():
            module = self.modules[name]
            module.weight.copy_(weight)
            module.form, module.activations = None, "float"
        answers = self.answers(child)
        quality = evaluate_answers(answers, self.messages)
        n_flips = sum(a.frame != b.frame for a, b in zip(self.parent_answers, answers, strict=True))
        return Cell(part, bits, self.kl(child), quality.intent_macro_f1, quality.span_f1, n_flips)

    def kl(self, child: Logits) -> float:
        """Mean over messages of the intents' divergence + mean over words of the tags'."""
        temperature = self.model.labels.temperature
        intents = [np.stack([row for row, _ in logits]) / temperature for logits in (self.parent, child)]
        found = float(divergence(*intents).mean())
        tags = [[t for _, t in logits if t is not None and len(t)] for logits in (self.parent, child)]
        return found + (float(divergence(*(np.concatenate(t) for t in tags)).mean()) if tags[0] else 0.0)

    def answers(self, logits: Logits) -> list[Answer]:
        """One a message."""
        rows = zip(self.messages, self.encoded, logits, strict=True)
        return [self.model.labels.answer(m.text, e, intent, tags) for m, e, (intent, tags) in rows]

    @torch.no_grad()
    def logits(self, first: int, given: int | None = None) -> Logits:
        """As `NLUModel.logits`, computed from layer `first` on (-1: from the embeddings on).

        given: number of the layer whose input it is given, where those between are skipped.
        """
        encoder = self.model.encoder
        found: Logits = [(np.zeros(0), None)] * len(self.messages)
        for batch, (ids, mask), states in zip(self.batches, self.padded, self.states, strict=True):
            x = encoder.embed(ids) if first < 0 else states[first if given is None else given]
            hidden: Tensor = encoder.states_from(max(first, 0), x, mask)[-1]
            intent = self.model.intent_head(self.model.pool(hidden, mask))
            for row, i in enumerate(batch):
                tags = None
                if self.model.tag_head is not None:
                    tags = self.model.tag_head(hidden[row, torch.from_numpy(self.encoded[i].first)]).numpy()
                found[i] = (intent[row].numpy(), tags)
        return found

    def _first_layer(self, name: str) -> int:
        """Number of the first layer whose output the matrix changes; -1: what the first layer sees, too."""
        if name.startswith("embeddings."):
            return -1
        return int(name.split(".")[1]) if name.startswith("layers.") else len(self.model.encoder.layers)


def _cell(line: str) -> Cell | None:
    """The cell of a line; None where it holds something else: it is measured again."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    kinds = {"part": str, "bits": int, "kl": float, "intent_macro_f1": float, "span_f1": float, "n_flips": int}
    if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != kinds:
        return None
    return Cell(**found)


class _Kept:
    """Cells in a file, one JSON line each, written as they are measured; without a path they are kept in memory."""

    def __init__(self, path: Path | None):
        self.path = path
        self.cells: dict[tuple[str, int], Cell] = {}
        if path is None or not path.is_file():
            return
        text = path.read_text(encoding="utf-8", errors="replace")
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        for cell in filter(None, map(_cell, whole)):
            self.cells[cell.part, cell.bits] = cell
        path.write_text("".join(whole), encoding="utf-8")  # without the half line of an interrupted run

    def add(self, cell: Cell) -> None:
        self.cells[cell.part, cell.bits] = cell
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(cell)) + "\n")
