"""What is wrong with messages and their labels, before anything is trained on them.

    error     a reader refuses it, no model can be right on it, or a score on it would be wrong
    warning   probably a flaw, or too little to learn from

`KINDS` has all kinds of findings, in the order in which they are told. Texts are compared case and white space folded
(Message.folded); near-duplicates and templates are defined in near_duplicates.py. Words are those of the taggers: runs
of letters, digits and marks on them, ideographs one by one.

    bare        an entity's written form that stands outside of any entity in at least BARE messages, and in at least as
                many as those in which it is one; forms are compared word by word
    ragged      a span that starts or ends with a blank, a quote or one of , ; : ! ? or starts with a full stop or ends
                with its only one ("D.C." has two), or with more brackets opened than closed, or the other way round
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from unicodedata import category

from flyweight.data.messages import PARTS, Entity, Message, NLUData
from flyweight.data.near_duplicates import near_duplicates, similarity
from flyweight.data.source import shown
from flyweight.errors import DataError

Severity = Literal["error", "warning"]
FEW = 5  # training messages of an intent, spans of an entity label
LONG = 512  # characters
BARE = 3  # messages

KINDS: dict[str, tuple[Severity, str]] = {
    "unreadable": ("error", "lines that the reader refuses"),
    "blank text": ("error", "messages without a text"),
    "broken span": ("error", "spans that are blank, overlap the one before, or lie outside of their text"),
    "contradiction": ("error", "texts with more than one intent"),
    "leak": ("error", "validation or test messages that also stand in an earlier part"),
    "unknown intent": ("warning", "intents of validation or test that training lacks"),
    "unknown entity type": ("warning", "entity types of validation or test that training lacks"),
    "few messages": ("warning", f"intents with fewer than {FEW} training messages"),
    "few spans": ("warning", f"entity types with fewer than {FEW} training spans"),
    "duplicate": ("warning", "messages that repeat one of the same part and intent"),
    "other entities": ("warning", "texts whose entities differ from one message to the next"),
    "near leak": ("warning", "validation or test messages with a near-duplicate in an earlier part"),
    "near contradiction": ("warning", "messages with a near-duplicate of another intent"),
    "template leak": ("warning", "validation or test messages that differ from an earlier part's in entities only"),
    "template contradiction": ("warning", "messages that differ from one of another intent in entities only"),
    "part of a word": ("warning", "spans that start or end within a word: no tagger can find them"),
    "ragged span": ("warning", "spans with a blank or a punctuation mark at an edge"),
    "left bare": ("warning", "entity texts that are left bare in as many messages as they are annotated in, or more"),
    "several types": ("warning", "entity texts with more than one entity type"),
    "long text": ("warning", f"messages of more than {LONG} characters; models see the first tokens only"),
}

_RAGGED = tuple(",;:!?'\"‘’“”«»、。，！？")
_IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`count` of `what`; the first `examples` say which, by their texts. `kind` is a key of KINDS."""

    kind: str
    severity: Severity
    count: int
    what: str
    examples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many there are of each in a part; an entity type is an entity label: with role and group."""

    messages: int
    texts: int
    intents: int
    without_intent: int
    entity_spans: int
    entity_types: int


def count(messages: Sequence[Message]) -> Counts:
    """The numbers of some messages; `texts` counts equal folded texts once."""
    labels = [e.label for m in messages for e in m.entities]
    return Counts(
        messages=len(messages),
        texts=len({m.folded for m in messages}),
        intents=len({m.intent for m in messages if m.intent is not None}),
        without_intent=sum(m.intent is None for m in messages),
        entity_spans=len(labels),
        entity_types=len(set(labels)),
    )


def check(data: NLUData, *, faults: Sequence[DataError] = (), n_examples: int = 5) -> list[Finding]:
    """All findings, errors first; none for flawless data.

    `faults` are what a reader has refused (flyweight.data.faults): they become the finding `unreadable`.
    """
    messages = data.messages
    parts = [i for i, part in enumerate(data.parts.values()) for _ in part]
    places = [PARTS[i] for i in parts]
    found: dict[str, list[str]] = {
        "unreadable": [str(fault) for fault in faults],
        "blank text": [f"{shown(m.text)} ({place})" for m, place in zip(messages, places, strict=True) if _blank(m)],
        "broken span": [_told(m, e) for m in messages for e in _broken(m)],
        "part of a word": [_told(m, e) for m in messages for e in m.entities if _cuts_a_word(m.text, e)],
        "ragged span": [_told(m, e) for m in messages for e in m.entities if _is_ragged(m.text[e.start : e.end])],
        "long text": [f"{shown(m.text)} ({len(m.text)} characters)" for m in messages if len(m.text) > LONG],
    }
    found |= _exact(messages, places) | _near(messages, parts) | _labels(data) | _written_forms(messages)
    return [
        Finding(kind=kind, severity=severity, count=len(told), what=what, examples=_first(told, n_examples))
        for kind, (severity, what) in KINDS.items()
        if (told := found[kind])
    ]


def _first(told: Sequence[str], n: int) -> tuple[str, ...]:
    return tuple(dict.fromkeys(told))[:n]


# one message ----------------------------------------------------------------------------------------------------------


def _blank(message: Message) -> bool:
    return not message.text.strip()


def _told(message: Message, e: Entity) -> str:
    return f"{shown(message.text[e.start : e.end])} ({e.label}, {e.start}:{e.end}) in {shown(message.text)}"


def _broken(message: Message) -> list[Entity]:
    text, done = message.text, 0
    bad = []
    for e in sorted(message.entities, key=lambda e: (e.start, e.end)):
        inside = 0 <= e.start < e.end <= len(text) and text[e.start : e.end].strip()
        if not inside or e.start < done:
            bad.append(e)
        if inside:
            done = max(done, e.end)
    return bad


def _cuts_a_word(text: str, e: Entity) -> bool:
    return any(_is_joined(text[at - 1], text[at]) for at in (e.start, e.end) if 0 < at < len(text))


def _is_joined(left: str, right: str) -> bool:
    """Whether no word of the taggers can end between two characters."""
    in_words = all(char.isalnum() or category(char).startswith("M") for char in (left, right))
    return in_words and not (_IDEOGRAPH.match(left) or _IDEOGRAPH.match(right))


def _is_ragged(span: str) -> bool:
    if span != span.strip() or span.startswith((*_RAGGED, ".")) or span.endswith(_RAGGED):
        return True
    if span.endswith(".") and span.count(".") == 1:
        return True
    return any(span.count(opened) != span.count(closed) for opened, closed in ("()", "[]", "{}"))


# equal and similar texts ----------------------------------------------------------------------------------------------


def _exact(messages: Sequence[Message], places: Sequence[str]) -> dict[str, list[str]]:
    """Leaks, duplicates, contradictions: what messages with equal folded texts say."""
    same: dict[str, list[tuple[Message, str]]] = defaultdict(list)
    for message, place in zip(messages, places, strict=True):
        same[message.folded].append((message, place))
    found: dict[str, list[str]] = {kind: [] for kind in ("contradiction", "leak", "duplicate", "other entities")}
    for group in same.values():
        text = shown(group[0][0].text)
        where = list(dict.fromkeys(place for _, place in group))
        intents = sorted({m.intent for m, _ in group if m.intent is not None})
        if len(intents) > 1:
            found["contradiction"].append(f"{text}: {', '.join(intents)}")
        found["leak"] += [f"{text} ({where[0]}, {place})" for _, place in group if place != where[0]]
        for (place, _), n in Counter((place, m.intent) for m, place in group).items():
            found["duplicate"] += [f"{text} ({n} times in {place})"] * (n - 1)
        spans = {tuple((_form(m.text[e.start : e.end]), e.label) for e in m.entities): m for m, _ in group}
        if len(spans) > 1:
            listed = " / ".join(", ".join(f"{shown(form)} ({label})" for form, label in s) or "none" for s in spans)
            found["other entities"].append(f"{text}: {listed}")
    return found


def _near(messages: Sequence[Message], parts: Sequence[int]) -> dict[str, list[str]]:
    near = near_duplicates(messages, parts)
    named = {
        "near leak": near.across_parts,
        "near contradiction": near.across_intents,
        "template leak": near.templates_across_parts,
        "template contradiction": near.templates_across_intents,
    }

    def told(kind: str, i: int, j: int) -> str:
        a, b = messages[i], messages[j]
        of_a, of_b = (PARTS[parts[i]], PARTS[parts[j]]) if kind.endswith("leak") else (a.intent, b.intent)
        close = f", J {similarity(a.text, b.text):.2f}" if kind.startswith("near") else ""
        return f"{shown(a.text)} ({of_a}) ~ {shown(b.text)} ({of_b}){close}"

    return {kind: [told(kind, i, j) for i, j in pairs] for kind, pairs in named.items()}


# labels ---------------------------------------------------------------------------------------------------------------


def _labels(data: NLUData) -> dict[str, list[str]]:
    """Names that training has seldom, or not at all."""
    found: dict[str, list[str]] = {}
    later = data.validation + data.test
    for names_of, few, unknown in (
        (_intents, "few messages", "unknown intent"),
        (_entity_labels, "few spans", "unknown entity type"),
    ):
        n_train, n_later = Counter(names_of(data.train)), Counter(names_of(later))
        by_count = sorted(n_train.items(), key=lambda item: (item[1], item[0]))
        found[few] = [f"{name}: {n}" for name, n in by_count if n < FEW]
        found[unknown] = [f"{name}: {n}" for name, n in n_later.most_common() if name not in n_train]
    return found


def _intents(messages: Sequence[Message]) -> list[str]:
    return [m.intent for m in messages if m.intent is not None]


def _entity_labels(messages: Sequence[Message]) -> list[str]:
    return [e.label for m in messages for e in m.entities]


# written forms of entities --------------------------------------------------------------------------------------------


def _form(text: str) -> str:
    return " ".join(text.casefold().split())


def _written_forms(messages: Sequence[Message]) -> dict[str, list[str]]:
    """Entity texts with several types, and those that are often left bare."""
    types: dict[str, Counter[str]] = defaultdict(Counter)
    annotated: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for i, m in enumerate(messages):
        for e in m.entities:
            span = m.text[e.start : e.end]
            types[_form(span)][e.entity] += 1
            annotated[tuple(word.casefold() for word in _WORD.findall(span))].add(i)
    annotated.pop((), None)
    several = sorted(((form, n) for form, n in types.items() if len(n) > 1), key=lambda item: -item[1].total())
    bare: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, form in _bare_forms(messages, annotated):
        bare[form].append(i)
    often = [(form, at) for form, at in bare.items() if len(at) >= max(BARE, len(annotated[form]))]
    often.sort(key=lambda item: (-len(item[1]), item[0]))
    return {
        "several types": [f"{shown(form)}: {', '.join(f'{t} {k}' for t, k in n.most_common())}" for form, n in several],
        "left bare": [
            f"{shown(' '.join(form))}: annotated in {len(annotated[form])}, bare in {len(at)} messages, "
            f"as in {shown(messages[at[0]].text)}"
            for form, at in often
        ],
    }


def _bare_forms(
    messages: Sequence[Message], forms: Mapping[tuple[str, ...], object]
) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(message, form) once for each message in which the words of a form stand outside of any entity."""
    lengths: dict[str, set[int]] = defaultdict(set)  # of the forms that begin with a word
    for form in forms:
        lengths[form[0]].add(len(form))
    for i, m in enumerate(messages):
        spans = [(found.start(), found.end()) for found in _WORD.finditer(m.text)]
        words = [m.text[start:end].casefold() for start, end in spans]
        taken = [any(start < e.end and e.start < end for e in m.entities) for start, end in spans]
        here = {
            form
            for at, word in enumerate(words)
            for n in lengths.get(word, ())
            if (form := tuple(words[at : at + n])) in forms and not any(taken[at : at + n])
        }
        yield from ((i, form) for form in sorted(here))
