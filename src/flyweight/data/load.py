"""Any data source -> NLUData: recognise the form, read its parts, split what is not split.

    file                      Rasa NLU (.yml, .yaml; .md and .json of Rasa 1), CSV, TSV, JSONL, a JSON list of rows,
                              words with BIO tags (.conll, .bio, .iob, .iob2, and .txt that looks like it)
    folder                    seq.in + seq.out + label, or Rasa NLU files below it (searched recursively)
    folder of parts           entries named train, valid (validation, val, dev), test: files or folders of the forms
                              above; in a Rasa folder NLU files of other names belong to train
    CLINC150's .json          one file with all parts
    "hub:owner/name"          a data set of the Hugging Face Hub, also "hub:name" and "hub:owner/name:config"
    "assistant"               the embedded data set

A part that the source brings is used as it is. What is missing is held out of train, stratified: first `test` of all,
then `validation` of the rest; validation never comes out of test, and no text that stands in the source's own
validation or test part is held out for the other. Synonyms, lookups and regexes are those of train.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flyweight.data import bio, clinc, hub, rasa, seq_folder, tabular
from flyweight.data.messages import PARTS, Message, NLUData
from flyweight.data.seen import were_seen
from flyweight.data.source import entity_synonyms, listed
from flyweight.data.splits import check_share, split
from flyweight.errors import DataError

EMBEDDED = {"assistant": Path(__file__).parent / "assistant"}
# Whole names only: a bot may well have intents in test_drive.yml.
PART_NAMES = {
    **dict.fromkeys(("train", "training", "training_data", "train_nlu", "nlu_train"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "test_data", "test_nlu", "nlu_test"), "test"),
}
FORMS = (
    "allowed: a Rasa NLU file (.yml, .md, .json), a .csv, .tsv, .jsonl, .json (rows, or CLINC150) or .conll file, "
    "a folder with seq.in, seq.out and label, a folder of Rasa NLU files, a folder with train and test of these forms, "
    "'hub:owner/name', or the name 'assistant'"
)


def load_data(
    path: str | Path,
    *,
    test: float = 0.2,
    validation: float = 0.1,
    seed: int = 0,
    text_column: str | None = None,
    intent_column: str | None = None,
) -> NLUData:
    """Read a data source in any known form, with train, validation and test parts.

    `test` and `validation` are shares in [0, 1) and count only where the source brings no such part; `seed` picks the
    messages. `text_column` and `intent_column` name the columns of a table that has unusual ones.
    Raises DataError for what cannot be read, ConfigError for a share out of range.
    """
    check_share("test", test)
    check_share("validation", validation)
    parts = _read_parts(path, text_column, intent_column)
    if "train" not in parts:
        found = f"no train part beside {listed(sorted(parts))}"
        raise DataError(found, allowed="allowed: a folder with train.csv, train.yml, train/ or the like", path=path)
    own = {name: part.train for name, part in parts.items()}
    notes = [*_unread(parts), *leaks(own)]
    train = own["train"]
    elsewhere = {m.folded for name, messages in own.items() if name != "train" for m in messages}
    held_out: dict[str, float] = {}
    for name, share in (("test", test), ("validation", validation)):
        if name not in own:
            train, own[name] = split(train, share, seed, stay=elsewhere)
            held_out |= {name: share, "seed": seed}
    data = replace(parts["train"], source=str(path), notes=tuple(notes), split=held_out)
    return data.with_splits(train, own["validation"], own["test"])


def read_messages(
    path: str | Path, *, text_column: str | None = None, intent_column: str | None = None
) -> tuple[Message, ...]:
    """Every message of a data source, unsplit: train, then validation, then test where it has such parts."""
    parts = _read_parts(path, text_column, intent_column)
    return sum((parts[name].train for name in PARTS if name in parts), ())


DEFAULT_SPLIT: dict[str, Any] = {"test": 0.2, "validation": 0.1, "seed": 0}
Part = Literal["auto", "train", "validation", "test", "all"]


@dataclass(frozen=True)
class Evaluation:
    """Messages to judge a model on, a line that says which they are, and what a rival may be trained on.

    `train` is empty where the source has nothing to learn from: fewer than two intents that the model was trained on.
    """

    messages: tuple[Message, ...]
    which: str
    train: tuple[Message, ...] = ()


def recorded_split(recorded: dict[str, Any]) -> dict[str, Any]:
    """Arguments of load_data as a model's card or lineage records them; what it does not record is the default."""
    return {k: recorded[k] if type(recorded.get(k)) in (int, type(v)) else v for k, v in DEFAULT_SPLIT.items()}


def evaluation_messages(
    path: str | Path,
    part: Part = "auto",
    *,
    seen: str = "",
    split_settings: dict[str, float] | None = None,
    text_column: str | None = None,
    intent_column: str | None = None,
) -> Evaluation:
    """The messages that a model should be judged on; `seen` is its memory of its training (see flyweight.data.seen).

    `auto`: the source's own test part, as it is; else all messages of the source that the model has not seen. A model
    without a memory is judged on the part that `split_settings` hold out. The other parts are those of load_data.
    Raises DataError where no message is left.
    """
    data = load_data(path, **recorded_split(split_settings or {}), text_column=text_column, intent_column=intent_column)
    if part == "auto" and seen and "test" in data.split:
        return _unseen(data, seen, path)
    if part == "all":
        return Evaluation(data.messages, f"all {len(data.messages)} messages of {path}{_leak(data.messages, seen)}")
    name = "test" if part == "auto" else part
    chosen = data.parts[name]
    if not chosen:
        raise DataError(f"no {name} messages", allowed="choose another part: train, validation, test or all", path=path)
    how = "held out of" if name in data.split else "the source's own part of"
    which = f"{len(chosen)} {name} messages, {how} {path}"
    if name != "test":
        return Evaluation(chosen, which)
    return Evaluation(chosen, which + _leak(chosen, seen), _learnable(data.train + data.validation))


def _unseen(data: NLUData, seen: str, path: str | Path) -> Evaluation:
    known = were_seen(data.messages, seen)
    new = tuple(m for m, was_seen in zip(data.messages, known, strict=True) if not was_seen)
    if not new:
        raise DataError(
            f"the model was trained on all {len(known)} messages",
            allowed="allowed: other messages, or another part: train, validation, test or all",
            path=path,
        )
    left_out = f" ({len(known) - len(new)} were trained on, left out)" if len(new) < len(known) else ""
    which = f"{len(new)} messages of {path} that the model has not seen{left_out}"
    old = tuple(m for m, was_seen in zip(data.messages, known, strict=True) if was_seen)
    return Evaluation(new, which, _learnable(old))


def _leak(messages: Sequence[Message], seen: str) -> str:
    n_seen = sum(were_seen(messages, seen))
    return f"; {n_seen} of them were trained on" if n_seen else ""


def _learnable(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The messages, or none where they have fewer than two intents."""
    return messages if len({m.intent for m in messages if m.intent is not None}) > 1 else ()


def _read_parts(path: str | Path, text_column: str | None, intent_column: str | None) -> dict[str, NLUData]:
    """The parts that the source brings, by name; each has all its messages in `train`."""
    if str(path).startswith(hub.PREFIX) and not os.path.exists(path):
        splits = hub.read_hub(str(path), text_column=text_column, intent_column=intent_column)
        return {name: _unsplit(messages) for name, messages in splits.items()}
    place = _resolve(path)
    if os.path.isfile(place) and _form(place) == "clinc":
        return {name: _unsplit(messages) for name, messages in clinc.read_clinc(place).items()}
    return {name: _read_part(paths, text_column, intent_column) for name, paths in _find_parts(place).items()}


def _unsplit(messages: tuple[Message, ...]) -> NLUData:
    return NLUData(messages, synonyms=entity_synonyms(messages))


def _resolve(path: str | Path) -> Path:
    if not str(path):
        raise DataError("the name of the data is empty", allowed=FORMS)
    if os.path.exists(path):
        return Path(path)
    if str(path) in EMBEDDED and EMBEDDED[str(path)].is_dir():
        return EMBEDDED[str(path)]
    raise DataError("no such file or folder", allowed=FORMS, path=path)


def _find_parts(path: Path) -> dict[str, list[Path]]:
    """Which files or folders make up each part."""
    if not os.path.isdir(path):
        # A YAML or Markdown file that is given by name is read: its reader says what it lacks.
        if _form(path) is None and path.suffix.lower() not in (".yml", ".yaml", ".md"):
            kind = (
                f"a file of the unknown form {path.suffix!r}" if os.path.isfile(path) else "neither a file nor a folder"
            )
            raise DataError(kind, allowed=FORMS, path=path)
        return {"train": [path]}
    if _form(path) == "seq":
        return {"train": [path]}
    parts: dict[str, list[Path]] = defaultdict(list)
    for entry in _entries(path):
        name = PART_NAMES.get((entry.name if os.path.isdir(entry) else entry.stem).lower())
        if name and _form(entry):
            parts[name].append(entry)
    if all(_form(p) == "rasa" for p in parts.get("train", ())):
        named = {p for paths in parts.values() for p in paths}
        others = [f for f in rasa.rasa_files(path) if not named & {f, *f.parents}]
        if others:
            parts["train"] += others
    for name, paths in parts.items():
        if len(paths) > 1 and any(_form(p) != "rasa" for p in paths):
            raise DataError(f"{listed(p.name for p in paths)} for {name}", allowed="allowed: one of them", path=path)
        if _form(paths[0]) == "clinc":
            found = f"{paths[0].name!r} for {name}, a file with parts of its own"
            raise DataError(found, allowed="allowed: the path of that file alone", path=path)
    if not parts:
        entries = listed(p.name for p in _entries(path))
        raise DataError(f"a folder of no known form, with {entries}", allowed=FORMS, path=path)
    return dict(parts)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        found = f"cannot be read ({error.strerror or error})"
        raise DataError(found, allowed="allowed: a readable folder", path=folder) from error


def _form(path: Path) -> str | None:
    """`tabular`, `bio`, `clinc`, `rasa`, `seq`, or None for what no reader knows."""
    if os.path.isdir(path):
        if any(os.path.isfile(path / name) for name in ("seq.in", "seq.out")):
            return "seq"
        return "rasa" if rasa.rasa_files(path) else None
    if not os.path.isfile(path):
        return None
    if path.suffix.lower() in tabular.SUFFIXES or tabular.is_json_rows(path):
        return "tabular"
    if bio.is_bio_file(path):
        return "bio"
    if rasa.is_rasa_file(path):
        return "rasa"
    return "clinc" if clinc.is_clinc_file(path) else None


def _read_part(paths: Sequence[Path], text_column: str | None, intent_column: str | None) -> NLUData:
    """One part as NLUData with all its messages in `train`; several paths are Rasa files and folders."""
    form = _form(paths[0])
    if form == "seq":
        return _unsplit(seq_folder.read_seq_folder(paths[0]))
    if form == "bio":
        return _unsplit(bio.read_bio(paths[0]))
    if form == "tabular":
        return tabular.read_tabular(paths[0], text_column=text_column, intent_column=intent_column)
    files = [f for p in paths for f in (rasa.rasa_files(p) if p.is_dir() else [p])]
    data = rasa.read_rasa_files(files)
    if not data.train:
        raise DataError("no messages", allowed="allowed: at least one intent with examples", path=paths[0])
    return data


def _unread(parts: dict[str, NLUData]) -> list[str]:
    """What the readers left out; of a source with several parts each line names those that it is said of."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in (name for name in PARTS if name in parts):
        for note in parts[name].notes:
            names[note].append(name)
    return [f"{', '.join(told)}: {note}" if len(parts) > 1 else note for note, told in names.items()]


def leaks(own: dict[str, tuple[Message, ...]]) -> list[str]:
    """Notes on how the parts that the source brings, by name, fit together; `train` is one of them."""
    notes = [note for name in ("validation", "test") if name in own for note in _notes(own[name], own["train"], name)]
    validation = {m.folded for m in own.get("validation", ())}
    n_chosen_on = sum(m.folded in validation for m in own.get("test", ()))
    if n_chosen_on:
        notes.append(
            f"{n_chosen_on} of the {len(own['test'])} test messages also stand in validation: "
            "what is chosen on it is chosen on them"
        )
    return notes


def _notes(part: Sequence[Message], train: Sequence[Message], name: str) -> list[str]:
    """What the user should know of a part that the source brings: leaks from train, names that train lacks."""
    texts, intents = {m.folded for m in train}, {m.intent for m in train}
    labels = {e.label for m in train for e in m.entities}
    n_known = sum(m.folded in texts for m in part)
    strange = [m.intent for m in part if m.intent not in intents]
    strange_labels = [{e.label for e in m.entities} - labels for m in part]
    notes = []
    if n_known:
        notes.append(
            f"{n_known} of the {len(part)} {name} messages also stand in training: "
            "scores on them show memory, not understanding"
        )
    if strange:
        names = listed(sorted({str(intent) for intent in strange}))
        notes.append(f"{len(strange)} of the {len(part)} {name} messages have an intent that training lacks: {names}")
    if any(strange_labels):
        names, n = listed(sorted(set().union(*strange_labels))), sum(map(bool, strange_labels))
        notes.append(f"{n} of the {len(part)} {name} messages have an entity that training lacks: {names}")
    return notes
