"""Finished techniques of recipes, kept in a folder by what they were made of, so that none is made twice.

    key = SHA-256(RECIPE_VERSION, model before, technique, settings, teacher, assistant, messages in order, seed)

FOLDER/stages/NAME-KEY/   model/         what the technique made (NLUModel.save)
                          stage.json     minutes, peak memory, what it said of itself
                          receipt.json   once it is measured

A model counts by its content: weights, forms, masks, how each matrix multiplies, shape, labels, tokenizer, survivors. A
setting that names a file or folder counts by what lies there. The device does not count. A stage is put in its place
whole, by one renaming: an interrupted process leaves none half, and two processes may share a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.artifact import whole_file
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError, FlyweightError
from flyweight.forms import pack
from flyweight.model.nlu import NLUModel
from flyweight.receipt import Stage, name_of
from flyweight.techniques.room import ReadsFiles, Run, Technique

RECIPE_VERSION = 2  # raised when the same technique with the same settings makes another model
RECIPE, SPENT = "recipe.json", "minutes.json"


class Stages:
    """Stages of one run. folder: None keeps nothing."""

    def __init__(self, folder: str | Path | None, data: NLUData, teacher: NLUModel, seed: int):
        self.folder = None if folder is None else Path(folder) / "stages"
        if self.folder is not None:
            self.shared = [RECIPE_VERSION, data_hash(data), content_hash(teacher), seed]

    def place(self, step: Technique, model: NLUModel, run: Run) -> Path | None:
        """Where this technique's stage lies, or will; None where nothing is kept."""
        if self.folder is None:
            return None
        assistant = None if run.assistant is None else content_hash(run.assistant)
        made_of = [*self.shared, assistant, content_hash(model), name_of(step), _settings(step)]
        key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{name_of(step)}-{key[:16]}"


def kept_stage(place: Path | None) -> Stage | None:
    """The finished stage that lies there; None where there is none, or one that cannot be read: it is made again."""
    if place is None:
        return None
    try:
        found = json.loads((place / "stage.json").read_text(encoding="utf-8"))
        return Stage(NLUModel.load(place / "model"), found["said"], found["minutes"], found["peak_memory_mb"])
    except (OSError, ValueError, KeyError, TypeError, FlyweightError):
        return None


def keep_stage(place: Path | None, stage: Stage) -> None:
    """Put a stage in its place, whole, unless another process did so already; what is damaged there moves aside."""
    if place is None or kept_stage(place) is not None:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    trial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.part")
    try:
        stage.model.save(trial / "model")
        facts = {"minutes": stage.minutes, "peak_memory_mb": stage.peak_memory_mb, "said": stage.said}
        (trial / "stage.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        damaged = trial.with_suffix(".damaged")
        try:
            if place.exists():
                os.rename(place, damaged)
            os.rename(trial, place)
        except OSError:
            if kept_stage(place) is None:  # else another process was first, with the same
                raise
        shutil.rmtree(damaged, ignore_errors=True)
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def kept_receipt(place: Path | None) -> dict[str, Any] | None:
    """The receipt of a kept stage, if it was measured."""
    try:
        found = None if place is None else json.loads((place / "receipt.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def keep_receipt(place: Path | None, receipt: dict[str, Any]) -> None:
    """Beside the stage."""
    if place is not None and place.is_dir():
        with whole_file(place / "receipt.json") as file:
            file.write(json.dumps(receipt, indent=1).encode())


@contextmanager
def spent(place: Path | None) -> Iterator[list[float]]:
    """`with spent(place) as minutes:` - minutes[0] is what the block took in the end, interrupted runs included."""
    path = None if place is None else place.with_name(f"{place.name}.{SPENT}")
    try:
        before = 0.0 if path is None else float(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        before = 0.0
    start, minutes = time.monotonic(), [before]
    try:
        yield minutes
    except BaseException:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(before + (time.monotonic() - start) / 60), encoding="utf-8")
        raise
    minutes[0] += (time.monotonic() - start) / 60
    if path is not None:
        path.unlink(missing_ok=True)


def begin(folder: Path, techniques: Sequence[Technique], resume: bool) -> None:
    """Note the recipe in a work folder. A folder that was begun with another one is only gone on with where told.

    What is finished and equal is used in any case, all else is made: permission concerns what the user means, not what
    comes out. Errors: ConfigError.
    """
    path = folder / RECIPE
    steps = json.loads(json.dumps([{name_of(step): vars(step)} for step in techniques], default=str))
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    if isinstance(before, list) and before != steps and worth_keeping(folder) and not resume:
        names = ", ".join(str(name) for step in before if isinstance(step, dict) for name in step)
        raise ConfigError(
            f"{folder} holds an unfinished run of another recipe ({names}); add --resume to use what is finished and "
            f"equal and make the rest, give --work for a folder of its own, or remove {folder}"
        )
    with whole_file(path) as file:
        file.write(json.dumps(steps, indent=1).encode())


def worth_keeping(folder: Path) -> bool:
    """Whether a technique or a training lies there, and not only notes and measured times."""
    notes = ("shapes-*.json", "milliseconds-*.json", RECIPE, f"*.{SPENT}")
    return any(path.is_file() and not any(map(path.match, notes)) for path in folder.rglob("*"))


def content_hash(model: NLUModel) -> str:
    """SHA-256 of everything that answers depend on, and of what survived; not of the card's history."""
    sha = hashlib.sha256(json.dumps([model.describe(), model.card.survivors], sort_keys=True).encode())
    sha.update(model.tokenizer.source.encode("utf-8", "surrogatepass"))
    arrays: dict[str, np.ndarray] = {name: v.detach().float().cpu().numpy() for name, v in model.vectors()}
    for name, form, multiplies in model.forms():
        entry, parts = pack(form)
        sha.update(json.dumps([name, entry | multiplies], sort_keys=True).encode())
        arrays |= {f"{name}.{part}": array for part, array in parts.items()}
    for name, array in sorted(arrays.items()):
        sha.update(f"{name} {array.dtype} {array.shape} ".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


def data_hash(data: NLUData) -> str:
    """SHA-256 of all messages, part by part, in order, and of what the source says beside them."""
    beside = [sorted(of.items()) for of in (data.synonyms, data.lookups, data.regexes)]
    return hashlib.sha256(repr([list(data.parts.items()), beside]).encode("utf-8", "surrogatepass")).hexdigest()


def _settings(step: Technique) -> list[Any]:
    """Settings, and the content of what they name where it is a file or a folder."""
    found = [getattr(step, name) for name in step.FILES] if isinstance(step, ReadsFiles) else []
    named = [v for value in found for v in (value if isinstance(value, (tuple, list)) else [value]) if v is not None]
    paths = [Path(os.path.expanduser(v)) for v in named]
    files = [_file_hash(path) for path in paths if path.exists()]
    return [json.loads(json.dumps(vars(step), default=str)), files]


def _file_hash(path: Path) -> str:
    """SHA-256 of a file, or of all files within a folder and their names."""
    sha = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        sha.update(f"{file.relative_to(path)} {file.stat().st_size} ".encode("utf-8", "surrogatepass"))
        with file.open("rb") as opened:
            for block in iter(lambda: opened.read(1 << 20), b""):
                sha.update(block)
    return sha.hexdigest()
