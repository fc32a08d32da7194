"""NLUData -> files that the readers read back equal: Rasa YAML (3.1) and JSON Lines.

    write_file(data, "nlu.yml")      all messages in one file: train, then validation, then test
    write_parts(data, "folder")      train.yml, validation.yml, test.yml: load_data reads the same parts
    write_data(data, path)           the one or the other

              Rasa YAML                                                JSON Lines
    message   with an intent; spans without blanks at their edges      any that a reader can make
              and without brackets; no text that would be read as an
              annotation or has blanks at its ends (but within a span)
    beside    synonyms, lookups, regexes (with the training messages)  synonyms that entities imply

Messages keep their order: neighbours of one intent form one item, so an intent may have several items (they are one to
every reader). Examples are lines of a `|` block; those with line breaks or characters that YAML does not print become
`- text: "..."`, quoted (Rasa itself knows that for intents only).
What a form cannot hold is refused in one DataError before anything is written. What was written is read back and
compared in a temporary folder beside the target, and only then moved to its place.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from typing import Literal

from flyweight.data.load import load_data
from flyweight.data.messages import PARTS, Entity, Message, NLUData
from flyweight.data.rasa_items import parse_annotations
from flyweight.data.source import ENTITY_KEYS, entity_synonyms, is_text, listed, shown
from flyweight.errors import DataError

Form = Literal["yaml", "jsonl"]
SUFFIXES: dict[str, Form] = {".yml": "yaml", ".yaml": "yaml", ".jsonl": "jsonl"}
PART_SUFFIX: dict[Form, str] = {"yaml": ".yml", "jsonl": ".jsonl"}
PART_FILES = tuple(part + suffix for part in PARTS for suffix in SUFFIXES)

_ANY_FORM = (
    "allowed: a text with letters, an intent's name or None, spans in text order without overlap, names and values "
    "without blanks at their ends, names without '#', a value that differs from its text"
)
_USE_JSONL = "allowed there: write JSON Lines (.jsonl, --form jsonl), which holds it"
_USE_YAML = "allowed there: write Rasa YAML (.yml, --form yaml), which holds it"
_OR_BARE = f"{_USE_YAML}, or the messages alone (--messages-only)"
# What a `|` block cannot hold: line breaks of YAML 1.1, and what YAML does not print. A byte order mark it prints, but
# a reader may drop it.
_SPECIAL = re.compile("[^\t\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_ESCAPED = re.compile(rf'[\\"\t]|{_SPECIAL.pattern}')
# Names that need no quotes, but for words that YAML 1.1 takes for yes, no and nothing.
_YAML_HEAD = 'version: "3.1"\n\nnlu:\n'
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_/+.-]*")
_YAML_WORDS = ("y", "n", "yes", "no", "on", "off", "true", "false", "null")


def write_data(data: NLUData, path: str | Path, *, form: Form | None = None, overwrite: bool = False) -> Path:
    """Write a file if `path` has a suffix and is no folder, else a folder of parts (of the form `yaml` by default).

    Errors: those of write_file and write_parts, and DataError for a `form` that the suffix contradicts.
    """
    path = Path(path)
    if path.is_dir() or not path.suffix:
        return write_parts(data, path, form=form or "yaml", overwrite=overwrite)
    if form is not None and SUFFIXES.get(path.suffix.lower()) != form:
        raise DataError(f"the form {form}", allowed=f"allowed: a file {PART_SUFFIX[form]}, or a folder", path=path)
    return write_file(data, path, overwrite=overwrite)


def bare(data: NLUData) -> NLUData:
    """The messages alone: no lookups, no regexes, no synonyms but those that entities imply."""
    return replace(data, synonyms=entity_synonyms(data.train), lookups={}, regexes={})


def write_file(data: NLUData, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write all messages into one file; its form is that of the suffix: .yml, .yaml or .jsonl.

    Errors: DataError for another suffix, an existing file (without `overwrite`), and what the form cannot hold.
    """
    path = Path(path)
    form = SUFFIXES.get(path.suffix.lower())
    if form is None:
        found = f"a file of the form {path.suffix!r} cannot be written"
        raise DataError(found, allowed=f"allowed: {', '.join(SUFFIXES)}", path=path)
    if path.is_dir():
        raise DataError("is a folder", allowed="allowed: a file", path=path)
    if path.exists() and not overwrite:
        raise DataError("already exists", allowed="choose another file, or add --overwrite", path=path)
    whole = data.with_splits(data.messages, (), ())
    texts = _texts(whole, form, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as place:
        made = Path(place) / path.name
        made.write_bytes(texts["train"].encode())
        _check_read_back(whole, made, form, path)
        os.replace(made, path)
    return path


def write_parts(data: NLUData, folder: str | Path, *, form: Form = "yaml", overwrite: bool = False) -> Path:
    """Write train, validation and test into a folder of their own; `load_data(folder)` has the same parts.

    A part without messages gets no file: `load_data` holds such a part out of train, unless its share is 0.
    With `overwrite` the files of a folder that holds nothing but such parts are replaced, those of either form.
    Errors: DataError for a folder that is in use, and for what the form cannot hold.
    """
    folder = Path(folder)
    old = _check_folder(folder, overwrite)
    texts = _texts(data, form, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as place:
        made = Path(place)
        for part, text in texts.items():
            (made / f"{part}{PART_SUFFIX[form]}").write_bytes(text.encode())
        _check_read_back(data, made, form, folder)
        for path in old:
            path.unlink()
        # Train comes last: if this is cut short, no reader takes a new training part with an old test part.
        for part in reversed(texts):
            os.replace(made / f"{part}{PART_SUFFIX[form]}", folder / f"{part}{PART_SUFFIX[form]}")
    return folder


def _check_folder(folder: Path, overwrite: bool) -> list[Path]:
    """The files that the folder holds: none, or parts that may be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise DataError("is a file", allowed="allowed: a folder", path=folder)
    old = sorted(folder.iterdir()) if folder.is_dir() else []
    if old and not overwrite:
        allowed = "choose another folder, or add --overwrite"
        raise DataError(f"already holds {listed(p.name for p in old)}", allowed=allowed, path=folder)
    others = [p.name for p in old if p.name not in PART_FILES or p.is_dir()]
    if others:
        allowed = f"allowed: a folder with nothing but files of {', '.join(PARTS)}, which are replaced"
        raise DataError(f"holds {listed(others)}", allowed=allowed, path=folder)
    return old


def _check_read_back(data: NLUData, made: Path, form: Form, path: Path) -> None:
    """What was not foreseen below is a fault of this module, and still must not become the user's file."""
    found = load_data(made, test=0, validation=0)
    synonyms = entity_synonyms(data.train) | (data.synonyms if form == "yaml" else {})
    wanted = data.train, data.validation, data.test, synonyms, data.lookups, data.regexes
    if wanted != (found.train, found.validation, found.test, found.synonyms, found.lookups, found.regexes):
        other = _USE_JSONL if form == "yaml" else _USE_YAML
        raise DataError("what was to be written does not read back equal", allowed=f"report it; {other}", path=path)


def _texts(data: NLUData, form: Form, path: Path) -> dict[str, str]:
    """What to write for each part that has messages; DataError for what the form cannot hold."""
    if not data.train:
        raise DataError("no training messages", allowed="allowed: at least one", path=path)
    _refuse([(m, _fault(m)) for m in data.messages], "no reader makes that", _ANY_FORM, path)
    if form == "jsonl":
        _check_jsonl_beside(data, path)
        return {name: "".join(map(_json_line, messages)) for name, messages in data.parts.items() if messages}
    _check_yaml_beside(data, path)
    examples = {name: [(m, _annotated(m)) for m in messages] for name, messages in data.parts.items() if messages}
    faults = [(m, _yaml_fault(m, example)) for pairs in examples.values() for m, example in pairs]
    _refuse(faults, "Rasa YAML cannot hold it", _USE_JSONL, path)
    texts = {name: "".join([_YAML_HEAD, *_intent_items(pairs)]) for name, pairs in examples.items()}
    return texts | {"train": "".join([texts["train"], *_beside_items(data)])}


def _refuse(faults: Sequence[tuple[Message, str | None]], verdict: str, allowed: str, path: Path) -> None:
    """One DataError for all messages with a fault: the first of them, and how many others there are."""
    found = [(message, fault) for message, fault in faults if fault]
    if found:
        message, fault = found[0]
        others = f" ({len(found) - 1} more messages are refused)" if len(found) > 1 else ""
        told = f"the message {shown(message.text)} has {fault}; {verdict}{others}"
        raise DataError(told, allowed=allowed, path=path)


def _fault(message: Message) -> str | None:
    """Why no reader makes such a message, in words that follow "it has"; None for a good one."""
    text, intent = message.text, message.intent
    if not (is_text(text) and text.strip()):
        return "no letters, or half a surrogate pair"
    if intent is not None and not _is_name(intent):
        return f"the intent {shown(intent)}"
    for e in message.entities:
        if not (0 <= e.start < e.end <= len(text) and text[e.start : e.end].strip()):
            return f"the span {e.start}:{e.end}, blank or outside of its text"
        for key in ENTITY_KEYS:
            given = getattr(e, key)
            if given is not None and (not _is_name(given) or (key != "value" and "#" in given)):
                return f"the {key} {shown(given)}"
        if e.value == text[e.start : e.end]:
            return f"a value that is its text, {shown(e.value)}"
    if any(left.end > right.start for left, right in pairwise(message.entities)):
        return "spans that overlap or are out of order"
    return None


def _is_name(given: str) -> bool:
    return is_text(given) and given != "" and given == given.strip()


# JSON Lines ----------------------------------------------------------------------------------------------------------


def _json_line(message: Message) -> str:
    entities = [{k: v for k, v in vars(e).items() if v is not None} for e in message.entities]
    row = {"text": message.text, "intent": message.intent, "entities": entities}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _check_jsonl_beside(data: NLUData, path: Path) -> None:
    """Refuse lookups, regexes, and synonyms that no entity implies or that the training messages contradict."""
    for kind, found in (("lookup", data.lookups), ("regex", data.regexes)):
        if found:
            fault = f"the {kind} {listed(found)}; JSON Lines cannot hold it"
            raise DataError(fault, allowed=_OR_BARE, path=path)
    implied = entity_synonyms(data.validation + data.test) | entity_synonyms(data.train)
    lost = [f"{written}: {value}" for written, value in data.synonyms.items() if implied.get(written) != value]
    if lost:
        fault = f"the synonym {listed(lost)}, which no entity has; JSON Lines cannot hold it"
        raise DataError(fault, allowed=_OR_BARE, path=path)


# Rasa YAML -----------------------------------------------------------------------------------------------------------


def _annotated(message: Message) -> str:
    """The text with `[span](entity)`; blanks at its ends go into a span beside them, where the reader leaves them."""
    text, done = message.text, 0
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    pieces = []
    for e in message.entities:
        start = 0 if e.start == first else e.start
        end = len(text) if e.end == last else e.end
        pieces += [text[done:start], f"[{text[start:end]}]", _annotation(e)]
        done = end
    return "".join([*pieces, text[done:]])


def _annotation(e: Entity) -> str:
    given = {key: getattr(e, key) for key in ENTITY_KEYS if getattr(e, key) is not None}
    bare = len(given) == 1 and not set(":)") & set(e.entity)
    return f"({e.entity})" if bare else json.dumps(given, ensure_ascii=False)


def _yaml_fault(message: Message, example: str) -> str | None:
    """Why Rasa YAML cannot hold the message, in words that follow "it has"; None where `example` reads back equal."""
    if message.intent is None:
        return "no intent"
    spans = [message.text[e.start : e.end] for e in message.entities]
    if any(span != span.strip() for span in spans):
        return "a span with blanks at its edge"
    if example != example.strip():
        return "blanks at its ends"
    try:
        same = parse_annotations(example, path=Path(), line=1) == (message.text, message.entities)
    except DataError:
        same = False
    return None if same else "brackets that would be read as an annotation"


def _intent_items(pairs: Sequence[tuple[Message, str]]) -> Iterator[str]:
    for intent, run in groupby(pairs, key=lambda pair: pair[0].intent):
        yield from _items("intent", intent or "", [example for _, example in run])


def _beside_items(data: NLUData) -> Iterator[str]:
    """Synonyms that the training messages do not imply, lookups, regexes."""
    implied = entity_synonyms(data.train)
    written_forms = defaultdict(list)
    for written, value in data.synonyms.items():
        if implied.get(written) != value:
            written_forms[value].append(written)
    for kind, lists in (("synonym", written_forms), ("lookup", data.lookups), ("regex", data.regexes)):
        for name, examples in lists.items():
            yield from _items(kind, name, examples)


def _items(kind: str, name: str, examples: Sequence[str]) -> Iterator[str]:
    """One item, or several: a run of examples that fit into a `|` block, a run of those that need quotes, ..."""
    for special, run in groupby(examples, key=lambda example: bool(_SPECIAL.search(example))):
        lines = [f"  - text: {_quoted(example)}\n" if special else f"    - {example}\n" for example in run]
        yield "".join([f"- {kind}: {_name(name)}\n  examples:{'' if special else ' |'}\n", *lines])


def _name(name: str) -> str:
    plain = _PLAIN_NAME.fullmatch(name) and name.lower() not in _YAML_WORDS
    return name if plain else _quoted(name)


def _quoted(text: str) -> str:
    """A double-quoted YAML scalar of one line."""
    named = {"\\": "\\\\", '"': '\\"', "\t": "\\t", "\n": "\\n", "\r": "\\r"}
    escaped = _ESCAPED.sub(lambda found: named.get(found[0], f"\\U{ord(found[0]):08X}"), text)
    return f'"{escaped}"'


def _check_yaml_beside(data: NLUData, path: Path) -> None:
    """Refuse synonyms, lookups and regexes that no reader makes."""
    pairs = [("synonym", value, written) for written, value in data.synonyms.items()]
    for kind, lists in (("lookup", data.lookups), ("regex", data.regexes)):
        pairs += [(kind, name, example) for name, examples in lists.items() for example in examples or [""]]
    for kind, name, example in pairs:
        if not (_is_name(name) and _is_name(example)) or (kind == "synonym" and example != example.lower()):
            allowed = "allowed: names and examples without blanks at their ends, synonyms in lower case"
            fault = f"the {kind} {shown(name)} with the example {shown(example)}; Rasa YAML cannot hold it"
            raise DataError(fault, allowed=allowed, path=path)
