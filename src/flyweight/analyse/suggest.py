"""Which student for a time: shapes that what is known of a model speaks for, and a plainly down-scaled one beside.

    energy[d] = sum of the d largest eigenvalues / sum of all           of `hidden_moments`: what a width of d carries

    pruned      heads, neurons and layers left that lose the least nats within the time (structures.py), layer by layer
    informed    as many layers as the pruned one keeps, as wide as carries ENERGY or as the time allows; the FFN fills
                the time
    shallow     layers as wide as the model's, as many as the time allows
    bilstm      one LSTM layer in both directions over the model's word embeddings, as wide as the time allows
    uniform     all layers, hidden size and FFN smaller by one factor: understands nothing, for comparison

Times are measured: the engine on this machine, int8, one thread, token ids in, logits out; each shape beside the
model's own, as in shapes.py. Nothing here is trained: which shape learns best, its recipe will show.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flyweight.analyse.shapes import Clock
from flyweight.analyse.structures import HEADS, LAYERS, NEURONS, Block, Parts, blocks_of, choices
from flyweight.artifact import whole_file
from flyweight.data.messages import Message, NLUData
from flyweight.data.splits import sample
from flyweight.errors import ConfigError, DataError
from flyweight.model.encoder import EncoderConfig, LayerShape, LSTMShape
from flyweight.model.nlu import NLUModel
from flyweight.model.slicing import hidden_moments
from flyweight.model.surgery import unpacked_copy
from flyweight.training.logits import content_of

ENERGY = 0.95  # of the residual stream that the informed width carries
STEP = 16  # of widths that are tried: the engine's panels
N_FITTED, N_MEASURED = 384, 128  # messages, as structured takes
N_CALLS = 200  # a shape that is tried
FEW_NATS = 0.02  # by all parts together: so little, and 4 bits are proposed

Steps = list[dict[str, dict[str, Any]]]  # techniques with their settings, as in a recipe


@dataclass(frozen=True)
class Known:
    """What the analyses say of a model. energy: by width from 1; used: tokens in the messages, of all."""

    energy: list[float]
    parts: list[Parts]
    used: int
    of: int

    def width(self, energy: float) -> int:
        """The smallest multiple of STEP that carries so much; the whole width where none does."""
        widths = range(STEP, len(self.energy), STEP)
        return next((d for d in widths if self.energy[d - 1] >= energy), len(self.energy))


@dataclass(frozen=True)
class Suggestion:
    """A student. predicted_ms: measured with random weights, of pruned summed from the table; steps: its recipe."""

    name: str
    reason: str
    shape: str
    predicted_ms: float
    speedup: float
    steps: Steps

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


def suggest(
    model: NLUModel,
    data: NLUData,
    *,
    target_ms: float | None = None,
    speedup: float | None = None,
    sensitivity: Path | None = None,
    folder: str | None = None,
    progress: bool = True,
) -> tuple[list[Suggestion], Known]:
    """Up to five students for a time, the uniform one last; 4 times as fast where neither time nor speed-up is given.

    sensitivity: a sensitivity.json, for the bits. folder: measured times and what is known are kept there, so that an
    interrupted call goes on. Errors: ConfigError for a time that no shape reaches, or both times; DataError without
    training messages.
    """
    if target_ms is not None and speedup is not None:
        raise ConfigError("target_ms and speedup are given; give one of them")
    if speedup is not None and not 1 < speedup < math.inf:
        raise ConfigError(f"speedup is {speedup:g}; allowed: a number above 1, as in 4")
    if target_ms is not None and not 0 < target_ms < math.inf:
        raise ConfigError(f"target_ms is {target_ms:g}; allowed: a number of milliseconds above 0, as in 0.2")
    if not data.train:
        raise DataError("no training messages", allowed="shapes are judged by them; give at least one")
    model = unpacked_copy(model)
    config = replace(model.encoder.config, integer_only=False)
    shapes = config.transformer_shapes("suggest")
    asked = sample(data.validation or data.train, N_MEASURED)
    clock = Clock(model, [m.text for m in asked], 8, folder)
    times = clock.table(progress)
    share = target_ms / times.dense_ms if target_ms is not None else 1 / (4.0 if speedup is None else speedup)
    if not 0 < share < 1:
        raise ConfigError(f"the model takes {times.dense_ms:.4g} ms in int8 as it is; allowed: a time below")
    found_known = known(model, data, asked, folder, progress)
    learn = _learning(model, _bits(sensitivity))
    made = [
        _pruned(found_known, clock, share, times.dense_ms, learn),
        _informed(found_known, clock, share, times.dense_ms, learn, shapes),
        _shallow(found_known, clock, share, times.dense_ms, learn, shapes),
        _bilstm(clock, share, times.dense_ms, learn),
        _uniform(clock, share, times.dense_ms, learn, shapes),
    ]
    found = [suggestion for suggestion in made if suggestion is not None]
    if not found:
        raise ConfigError(f"no student of this model is within {share * times.dense_ms:.3g} ms; ask for less speed")
    return found, found_known


def known(model: NLUModel, data: NLUData, asked: Sequence[Message], folder: str | None, progress: bool = True) -> Known:
    """Measure, or read what was measured for the same model and messages."""
    texts = [m.text for m in sample(data.train, N_FITTED)]
    key = hashlib.sha256(repr([content_of(model), texts, asked]).encode("utf-8", "surrogatepass")).hexdigest()[:12]
    path = None if folder is None else Path(folder) / f"known-{key}.json"
    if path is not None and (kept := _kept(path)) is not None:
        return kept
    encoded = model.tokenizer.encode_batch(texts)
    values = torch.linalg.eigvalsh(hidden_moments(model, encoded).double()).flip(0).clamp(min=0)
    used = {int(i) for e in model.tokenizer.encode_batch([m.text for m in data.train]) for i in e.ids}
    found = Known(
        energy=(values.cumsum(0) / values.sum()).tolist(),
        parts=blocks_of(model, texts, asked, progress),
        used=len(used),
        of=model.tokenizer.vocab_size,
    )
    if path is not None:
        parts = [[[_without_moments(b) for b in (p.attention, p.ffn)], p.dropped] for p in found.parts]
        with whole_file(path) as file:
            file.write(json.dumps([found.energy, parts, found.used, found.of]).encode())
    return found


def _without_moments(block: Block) -> list[Any]:
    return [block.name, block.size, block.order, block.counts, block.kl]


def _kept(path: Path) -> Known | None:
    """What the file holds; None where it is missing or holds something else: it is measured again."""
    try:
        energy, parts, used, of = json.loads(path.read_text(encoding="utf-8"))
        return Known(energy, [Parts(_block(a), _block(f), float(dropped)) for (a, f), dropped in parts], used, of)
    except (OSError, ValueError, TypeError):
        return None


def _block(row: list[Any]) -> Block:
    name, size, order, counts, kl = row
    return Block(name, size, torch.zeros(0, 0), tuple(order), tuple(counts), tuple(kl))


def _bits(path: Path | None) -> int:
    """4 where a sensitivity file says that 4 bits cost next to nothing, all parts together; else 8. ConfigError."""
    if path is None:
        return 8
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        few = [cell["kl"] for cell in cells if cell["bits"] == 4]
        return 4 if few and sum(few) < FEW_NATS else 8
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no sensitivity.json; flyweight sensitivity MODEL DATA writes one") from error


def _learning(model: NLUModel, bits: int) -> Callable[[Steps], Steps]:
    """The recipe of a student: its shape, then distillation, words that are not needed, and few bits."""
    losses = "logits" if model.tag_head is None else "logits+tags"
    packed: Steps = [{"int8": {}}]
    if bits == 4:
        packed = [{"trained_codes": {"encoder": 16, "embeddings": 256, "heads": 256}}]
    distil: Steps = [{"distillation": {"losses": losses, "transfer": 20}}]
    return lambda first: [*first, *(distil if "student" in first[0] else []), {"vocabulary": {}}, *packed]


def _largest(clock: Clock, share: float, sizes: Sequence[int], shape: Callable[[int], EncoderConfig]) -> int | None:
    """The largest size whose shape takes at most this share of the time, by halving; None where none does."""
    low, high = -1, len(sizes)
    while high - low > 1:
        middle = (low + high) // 2
        if clock.share(shape(sizes[middle]), N_CALLS) <= share:
            low = middle
        else:
            high = middle
    return None if low < 0 else sizes[low]


def _student(name: str, reason: str, clock: Clock, config: EncoderConfig, dense_ms: float, steps: Steps) -> Suggestion:
    took = clock.share(config, N_CALLS)
    layers = [f"{s.heads}x{s.ffn}" if isinstance(s, LayerShape) else "lstm" for s in config.layers]
    shape = f"hidden {config.hidden}, layers {' '.join(layers) or 'none'}"
    return Suggestion(name, reason, shape, round(took * dense_ms, 4), round(1 / took, 2), steps)


def _narrow(clock: Clock, hidden: int, layers: int, ffn: int) -> EncoderConfig:
    """The configuration that the room `student` makes of these numbers."""
    config = clock.config
    heads = max(shape.heads for shape in config.transformer_shapes("suggest"))
    there = min(heads, max(1, round(heads * hidden / config.hidden)))
    return replace(config, hidden=hidden, layers=(LayerShape(heads=there, ffn=ffn),) * layers)


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"


Learn = Callable[[Steps], Steps]


def _pruned(known: Known, clock: Clock, share: float, dense_ms: float, learn: Learn) -> Suggestion | None:
    found = choices(known.parts, clock.table(False), (LAYERS, HEADS, NEURONS))
    best = next((choice for choice in reversed(found) if choice.share <= share), None)
    if best is None:
        return None
    left = [layer for layer in best.layers if layer is not None]
    shape = f"hidden {clock.config.hidden}, layers {' '.join(f'{s.heads}x{s.ffn}' for s in left) or 'none'}"
    dropped = len(best.layers) - len(left)
    go = f"{_layers(dropped)} {'goes' if dropped == 1 else 'go'}"
    reason = f"loses the least within the time: {best.kl:.3g} nats before training, {go}"
    steps = learn([{"structured": {"target_ms": round(share * dense_ms, 4)}}])
    return Suggestion("pruned", reason, shape, round(best.share * dense_ms, 4), round(1 / best.share, 2), steps)


def _informed(
    known: Known, clock: Clock, share: float, dense_ms: float, learn: Learn, shapes: Sequence[LayerShape]
) -> Suggestion | None:
    found = choices(known.parts, clock.table(False), (LAYERS, HEADS, NEURONS))
    best = next((choice for choice in reversed(found) if choice.share <= share), found[0])
    layers, ffn = max(1, sum(layer is not None for layer in best.layers)), max(s.ffn for s in shapes)
    wanted = known.width(ENERGY)
    hidden = _largest(clock, share, range(STEP, wanted + 1, STEP), lambda d: _narrow(clock, d, layers, STEP))
    if hidden is None:
        return None
    neurons = _largest(clock, share, range(STEP, ffn + 1, STEP), lambda n: _narrow(clock, hidden, layers, n)) or STEP
    carried = f"{hidden} of {clock.config.hidden} numbers carry {known.energy[hidden - 1]:.0%} of the states"
    if hidden < wanted:
        carried += f", as many as the time allows ({ENERGY:.0%} need {wanted})"
    reason = f"{carried}; pruning keeps {_layers(layers)}"
    steps = learn([{"student": {"layers": layers, "hidden": hidden, "ffn": neurons}}])
    return _student("informed", reason, clock, _narrow(clock, hidden, layers, neurons), dense_ms, steps)


def _shallow(
    known: Known, clock: Clock, share: float, dense_ms: float, learn: Learn, shapes: Sequence[LayerShape]
) -> Suggestion | None:
    config = clock.config
    count = _largest(clock, share, range(1, len(shapes)), lambda n: replace(config, layers=(shapes[0],) * n))
    if count is None:
        return None
    dropped = sorted(part.dropped for part in known.parts)[: len(shapes) - count]
    reason = f"whole layers; the {len(dropped)} least needed alone cost {min(dropped):.3g} to {max(dropped):.3g} nats"
    student = replace(config, layers=(shapes[0],) * count)
    return _student("shallow", reason, clock, student, dense_ms, learn([{"student": {"layers": count}}]))


def _bilstm(clock: Clock, share: float, dense_ms: float, learn: Learn) -> Suggestion | None:
    config = clock.config

    def shape(hidden: int) -> EncoderConfig:
        most = config.embedding or config.hidden
        embedding = 0 if hidden <= most else most
        return replace(config, hidden=hidden, embedding=embedding, layers=(LSTMShape(),), relative_buckets=0)

    hidden = _largest(clock, share, range(STEP, 2 * config.hidden + 1, STEP), shape)
    if hidden is None:
        return None
    steps = learn([{"student": {"kind": "bilstm", "hidden": hidden}}])
    reason = "no attention: one pass over the tokens in each direction, on the model's word embeddings"
    return _student("bilstm", reason, clock, shape(hidden), dense_ms, steps)


def _uniform(
    clock: Clock, share: float, dense_ms: float, learn: Learn, shapes: Sequence[LayerShape]
) -> Suggestion | None:
    config, ffn = clock.config, max(s.ffn for s in shapes)

    def shape(hidden: int) -> EncoderConfig:
        return _narrow(clock, hidden, len(shapes), round(ffn * hidden / config.hidden))

    hidden = _largest(clock, share, range(STEP, config.hidden, STEP), shape)
    if hidden is None:
        return None
    steps = learn([{"student": {"hidden": hidden}}])
    reason = "for comparison: all layers, everything narrower by one factor"
    return _student("uniform", reason, clock, shape(hidden), dense_ms, steps)
