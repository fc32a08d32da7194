"""A receipt: what one technique did to size, answers and speed, measured on the exported file.

    worsens = file_bytes > before + 8192 and speedup < 0.97 * before's      the file is larger and slower than before

before: the technique before, for the first one the parent, whose speedup is 1 and whose bytes are those of weights and
tokenizer. A receipt itself lengthens the next file by some kilobytes, and two runs of one model differ by a percent or
two: neither is worse. Speed-ups were measured minutes apart, so where they say slower both files are timed in turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flyweight.artifact import read
from flyweight.data.messages import Message, NLUData
from flyweight.data.splits import sample
from flyweight.errors import DataError
from flyweight.export.fly import export_fly
from flyweight.export.sparse import report
from flyweight.forms import Form, Sparse
from flyweight.measure.latency import compare, ratio, single_thread
from flyweight.measure.memory import disk_bytes
from flyweight.measure.quality import Quality, ask, evaluate_answers
from flyweight.model.linear import computes
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.runtime.parser import Parser, load
from flyweight.techniques import TECHNIQUES
from flyweight.techniques.room import Technique

N_LATENCY_CALLS = 60
N_QUALITY_MESSAGES = 1000
RECEIPT_BYTES = 8192  # by which receipts may lengthen a file that is otherwise the same
CLOCK = 0.97  # of a speed-up: what is less is slower, what is more may be the clock


@dataclass(frozen=True)
class Receipt:
    """What one technique did, measured on the exported file and the validation messages.

    bits: of a weight in each matrix, without tables and scales (32: float);
    repacked: matrices that an earlier technique had packed and this one packed in another form or number of bits, or
    without their static steps, so that the earlier choice is gone (training packed weights further is none);
    n_parameters, file_bytes; quality beside the parent's on the same messages; latency_ms and parent_ms: mean of a
    message, batch 1, one thread, tokenizer included, interleaved; minutes and peak_memory_mb: the cost of compressing.
    `engine` names what executed the file: the native engine and its level, or numpy. `part` says what quality was
    measured on; peak_memory_mb is the whole process's highest so far. sparse: where matrices are pruned, `stored`: how
    each lies in the file (what was fastest here; "dense in memory" where the engine unpacks it), and, where quality is
    measured, `break_even`: the sparsity from which sparse pays for a shape, null where it never does here. reached:
    what the technique says of itself; of structured, milliseconds (engine, one thread, no tokenizer) of the dense
    model, wanted, predicted and measured, how many times faster, bits, and the heads and neurons of each layer that is
    left. parent_bytes: weights and tokenizer of the model before the first technique; worsens: both size and speed, see
    the module; False where speed is not measured.
    """

    technique: str
    settings: dict[str, Any]
    part: str
    bits: dict[str, int]
    repacked: int
    n_parameters: int
    file_bytes: int
    quality: dict[str, Any]
    latency_ms: float | None
    parent_ms: float | None
    engine: str
    minutes: float
    peak_memory_mb: float
    sparse: dict[str, Any] = field(default_factory=dict)
    reached: dict[str, Any] = field(default_factory=dict)
    parent_bytes: int = 0
    worsens: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Stage:
    """A technique that is through: its model, what it said of itself, and what making it cost."""

    model: NLUModel
    said: dict[str, Any]
    minutes: float
    peak_memory_mb: float


@dataclass(frozen=True)
class Scales:
    """What receipts of one recipe are measured with: messages, their part's name, the parent and its answers.

    parent_answers: none where quality and latency are not measured.
    """

    teacher: NLUModel
    messages: tuple[Message, ...]
    part: str
    parent_answers: list[Any]
    progress: bool

    @classmethod
    def of(cls, teacher: NLUModel, data: NLUData, measure: bool, progress: bool) -> Scales:
        """Errors: DataError for messages of none of the model's intents."""
        messages, part = measured_messages(data)
        refuse_strangers(teacher, messages)
        answers = teacher.answers([m.text for m in messages]) if measure else []
        return cls(teacher, messages, part, answers, progress)


def measured_messages(data: NLUData) -> tuple[tuple[Message, ...], str]:
    """What receipts are measured on and its name: validation, or train where there is none; never test.

    Of more than 1000 messages a stratified sample.
    """
    part = "validation" if data.validation else "train"
    return sample(data.validation or data.train, N_QUALITY_MESSAGES), part


def refuse_strangers(teacher: NLUModel, messages: Sequence[Message]) -> None:
    """Messages of none of the model's intents can measure nothing."""
    named = {m.intent for m in messages if m.intent is not None}
    if named and teacher.labels.intents and not named & set(teacher.labels.intents):
        raise DataError(
            f"no message has an intent that the model knows ({', '.join(sorted(named)[:3])} ...)",
            allowed="give the data that the model was trained on, or messages with the same intents",
        )


def make_receipt(
    step: Technique, before: NLUModel, stage: Stage, scales: Scales, last: dict[str, Any] | None
) -> Receipt:
    """Export the stage's model to a temporary file and measure that file. Without parent answers only its size.

    before: the model that the technique was given; last: the receipt of the technique before, if any.
    """
    child, measure = stage.model, bool(scales.parent_answers)
    parent_bytes = scales.teacher.size_bytes() + len(scales.teacher.tokenizer.source.encode())
    with tempfile.TemporaryDirectory() as folder:
        path = export_fly(child, Path(folder) / "step.fly")
        nlu = load(path)
        quality: dict[str, Any] = {}
        latency_ms = parent_ms = None
        texts = [m.text for m in scales.messages]
        if measure:
            with bar(f"measuring {name_of(step)}", len(texts), show=scales.progress) as advance:
                answers = ask(nlu, texts, advance)
            quality = summary(evaluate_answers(answers, scales.messages, against=scales.parent_answers))
            with single_thread():
                timed = compare({"parent": scales.teacher.parse, "child": nlu.parse}, texts, n_calls=N_LATENCY_CALLS)
            latency_ms, parent_ms = timed["child"].mean_ms, timed["parent"].mean_ms
            quality["speedup"] = round(ratio(timed["parent"], timed["child"]).of_means, 3)
        pruned = {name: m.form for name, m, _ in child.matrices() if isinstance(m.form, Sparse)}
        file_bytes, speedup = disk_bytes(path), quality.get("speedup")
        return Receipt(
            technique=name_of(step),
            settings=dict(vars(step)),
            part=scales.part,
            bits={name: 32 if m.form is None else m.form.bits for name, m, _ in child.matrices()},
            repacked=_repacked(before, child),
            n_parameters=child.n_parameters(),
            file_bytes=file_bytes,
            quality=quality,
            latency_ms=None if latency_ms is None else round(latency_ms, 4),
            parent_ms=None if parent_ms is None else round(parent_ms, 4),
            engine=nlu.engine.title,
            minutes=round(stage.minutes, 3),
            peak_memory_mb=round(stage.peak_memory_mb, 1),
            sparse=report(read(path).manifest["weights"], pruned, measure=measure),
            reached=stage.said,
            parent_bytes=parent_bytes,
            worsens=worse((file_bytes, speedup), (parent_bytes, 1.0) if last is None else size_and_speed(last))
            and (last is None or _slower(nlu, before, texts)),
        )


SizeAndSpeed = tuple[int, float | None]  # bytes, times as fast as the parent (None: not measured)


def worse(now: SizeAndSpeed, before: SizeAndSpeed) -> bool:
    """Whether the file is larger and slower than before."""
    if now[1] is None or before[1] is None:
        return False
    return now[0] > before[0] + RECEIPT_BYTES and now[1] < CLOCK * before[1]


def size_and_speed(receipt: dict[str, Any]) -> SizeAndSpeed:
    """Of a receipt in JSON form."""
    return receipt["file_bytes"], receipt["quality"].get("speedup")


def _slower(nlu: Parser, before: NLUModel, texts: Sequence[str]) -> bool:
    """Whether the file is slower than that of the model before, call by call in turn."""
    with tempfile.TemporaryDirectory() as folder, single_thread():
        other = load(export_fly(before, Path(folder) / "before.fly"))
        timed = compare({"before": other.parse, "now": nlu.parse}, texts, n_calls=5 * N_LATENCY_CALLS)
    return ratio(timed["before"], timed["now"]).median_per_call < CLOCK


def all_worse(receipt: dict[str, Any]) -> bool:
    """Whether a whole recipe, of which this is the last receipt, gives a larger and slower file than the parent's."""
    return worse(size_and_speed(receipt), (receipt["parent_bytes"], 1.0))


def _repacked(before: NLUModel, after: NLUModel) -> int:
    """Number of matrices that were packed and now have another form, granularity, number of bits, or no static steps.

    Static steps are those of the input and, of an attention, those of Q, K and V. Those of layers that are gone are
    none.
    """
    found, now = 0, {name: module for name, module, _ in after.matrices()}
    for a, b in ((module, now[name]) for name, module, _ in before.matrices() if name in now):
        lost = computes(a).keys() - computes(b).keys()
        found += a.form is not None and (b.form is None or _kind(a.form) != _kind(b.form) or bool(lost))
    return found


def _kind(form: Form) -> tuple[Any, ...]:
    return type(form), form.bits, form.fields().get("per")


def summary(quality: Quality) -> dict[str, Any]:
    """Quality as JSON without the list of flips (those belong to `evaluate`)."""
    return {k: v for k, v in quality.to_dict().items() if k != "flips"}


def name_of(step: Technique) -> str:
    """A technique's name in the table."""
    return next(name for name, cls in TECHNIQUES.items() if type(step) is cls)
