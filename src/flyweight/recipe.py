"""A recipe: an ordered list of techniques; the runner applies them and makes a receipt of each.

Recipe.load("fast.yml")      techniques: [{codebook: {encoder: 16}}, ...]
compress(teacher, data, [Int8()])
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flyweight.artifact import read
from flyweight.data.messages import Message, NLUData
from flyweight.data.splits import sample
from flyweight.errors import ConfigError, DataError, MissingExtraError
from flyweight.export.fly import export_fly
from flyweight.export.sparse import report
from flyweight.forms import Form, Sparse
from flyweight.measure.latency import compare, ratio, single_thread
from flyweight.measure.memory import disk_bytes, peak_rss_mb
from flyweight.measure.quality import Quality, ask, evaluate_answers
from flyweight.model.linear import computes
from flyweight.model.nlu import NLUModel
from flyweight.progress import bar
from flyweight.runtime.parser import load
from flyweight.techniques import TECHNIQUES
from flyweight.techniques.room import Run, Technique, technique
from flyweight.training.teacher import calibrate

N_LATENCY_CALLS = 60
N_QUALITY_MESSAGES = 1000


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
    measured, `break_even`: the sparsity from which sparse pays for a shape, null where it never does here. reached: of
    structured, milliseconds (engine, one thread, no tokenizer) of the dense model, wanted, predicted and measured, how
    many times faster, bits, and the heads and neurons of each layer that is left.
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

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Recipe:
    """Techniques in the order in which they are applied."""

    techniques: tuple[Technique, ...]

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML file: `techniques:` a list of names, or of {name: {setting: value}}. Errors: ConfigError."""
        try:
            import yaml
        except ImportError as error:
            raise MissingExtraError("PyYAML", "workshop", "reading a recipe") from error
        path = Path(path)
        if not path.is_file():
            raise ConfigError(f"recipe {path} does not exist; name a YAML file with a list 'techniques'")
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"recipe {path} is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(found, dict) or list(found) != ["techniques"] or not isinstance(found["techniques"], list):
            raise ConfigError(f"recipe {path}: one key is allowed, 'techniques', with a list")
        return cls(tuple(_from_yaml(item, path) for item in found["techniques"]))

    @classmethod
    def parse(cls, words: Sequence[str]) -> Recipe:
        """Read `int8` or `codebook:encoder=4,embeddings=none` (the command line's form). Errors: ConfigError."""
        techniques = []
        for word in words:
            name, _, settings = word.partition(":")
            pairs = [pair.partition("=") for pair in settings.split(",") if pair]
            keys = [key for key, _, _ in pairs]
            twice = [key for key in keys if keys.count(key) > 1]
            if twice:
                raise ConfigError(f"technique '{word}': '{twice[0]}' is given twice; give each setting once")
            wrong = [key for key, _, text in pairs if not text]
            if wrong:
                raise ConfigError(f"technique '{word}': '{wrong[0]}' has no value; write {name}:setting=value,...")
            techniques.append(technique(TECHNIQUES, name, {key: _value(text) for key, _, text in pairs}))
        return cls(tuple(techniques))


def compress(
    teacher: NLUModel,
    data: NLUData,
    recipe: Recipe | Sequence[Technique],
    *,
    seed: int = 0,
    device: str = "auto",
    folder: str | Path | None = None,
    measure: bool = True,
    progress: bool = True,
) -> NLUModel:
    """Apply techniques in order; the temperature is fitted again after each. Returns a new model.

    Receipts lie in `model.card.steps`, one a technique, and travel into the .fly file. measure=False leaves out their
    quality and latency. folder: checkpoints and caches; after an interruption the same call goes on from there. Remove
    it once the result is saved. Errors: ConfigError, DataError, ParityError (a step's file does not answer like its
    model).
    """
    if type(recipe) in TECHNIQUES.values():
        raise ConfigError(f"one technique, {recipe!r}, is no recipe; give a list: [{recipe!r}]")
    techniques = recipe.techniques if isinstance(recipe, Recipe) else tuple(recipe)
    if not techniques:
        raise ConfigError(f"no technique given; allowed: {', '.join(TECHNIQUES)}")
    run = Run(data, teacher, seed=seed, device=device, folder=str(folder) if folder else None, progress=progress)
    model = teacher
    messages, part = measured_messages(data)
    refuse_strangers(teacher, messages)
    parent_answers = teacher.answers([m.text for m in messages]) if measure else []
    for step in techniques:
        start, run = time.monotonic(), replace(run, said={})
        child = step.apply(model, run)
        calibrate(child, data.validation)
        minutes = (time.monotonic() - start) / 60
        receipt = make_receipt(step, model, child, run, messages, part, parent_answers, minutes)
        child.card = replace(model.card, steps=[*model.card.steps, receipt.to_dict()], survivors=child.card.survivors)
        model = child
    model.card = replace(model.card, metrics={part: model.card.steps[-1]["quality"]})
    return model


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
    step: Technique,
    before: NLUModel,
    child: NLUModel,
    run: Run,
    messages: Sequence[Message],
    part: str,
    parent_answers: list[Any],
    minutes: float,
) -> Receipt:
    """Export the child to a temporary file and measure that file. Without parent answers only its size."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_fly(child, Path(folder) / "step.fly")
        nlu = load(path)
        quality: dict[str, Any] = {}
        latency_ms = parent_ms = None
        if parent_answers:
            texts = [m.text for m in messages]
            with bar(f"measuring {name_of(step)}", len(texts), show=run.progress) as advance:
                answers = ask(nlu, texts, advance)
            quality = summary(evaluate_answers(answers, messages, against=parent_answers))
            with single_thread():
                timed = compare({"parent": run.teacher.parse, "child": nlu.parse}, texts, n_calls=N_LATENCY_CALLS)
            latency_ms, parent_ms = timed["child"].mean_ms, timed["parent"].mean_ms
            quality["speedup"] = round(ratio(timed["parent"], timed["child"]).of_means, 3)
        pruned = {name: m.form for name, m, _ in child.matrices() if isinstance(m.form, Sparse)}
        return Receipt(
            technique=name_of(step),
            settings=dict(vars(step)),
            part=part,
            bits={name: 32 if m.form is None else m.form.bits for name, m, _ in child.matrices()},
            repacked=_repacked(before, child),
            n_parameters=child.n_parameters(),
            file_bytes=disk_bytes(path),
            quality=quality,
            latency_ms=None if latency_ms is None else round(latency_ms, 4),
            parent_ms=None if parent_ms is None else round(parent_ms, 4),
            engine=nlu.engine.title,
            minutes=round(minutes, 3),
            peak_memory_mb=round(peak_rss_mb(), 1),
            sparse=report(read(path).manifest["weights"], pruned, measure=bool(parent_answers)),
            reached=run.said,
        )


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


def _from_yaml(item: object, path: Path) -> Technique:
    if isinstance(item, str):
        return technique(TECHNIQUES, item, {})
    if isinstance(item, dict) and len(item) == 1:
        ((name, settings),) = item.items()
        if settings is None or isinstance(settings, dict):
            return technique(TECHNIQUES, str(name), settings or {})
    raise ConfigError(f"recipe {path}: {item!r} is no technique; allowed: a name, or name: {{setting: value}}")


def _value(text: str) -> Any:
    """none, true, false, whole numbers, decimals; anything else is a word."""
    words: dict[str, Any] = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
