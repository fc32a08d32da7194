"""Transfer text: new messages made of the training messages, for a teacher to answer.

What a student learns from its teacher's logits and hidden states needs no labels, and more text than there is. KINDS
names the ways; none needs a language model or a service:

splice         beginning of one message + end of another
same-intent    the same within one intent
ngram          1 to 5 neighbouring words of a message
mask           words become the mask token
alike          words become others of their distributional class
nearest        words become others whose embeddings are near
mix            mask, alike and ngram at once, by Tang's rules
slot           values of the same entity label from other messages
typo           one or two slips of the finger
contraction    what is <-> what's, cannot <-> can't
case           lower case, capitals, a capital first

slot, typo, contraction and case keep what a message says: intent and entities stay, spans moved exactly. The others may
say anything: they have neither, and the teacher's logits are their only label (see soft_labels_loss).
Sources: Tang et al. 2019, arXiv:1903.12136 (mix); Jiao et al. 2020, arXiv:1909.10351 (nearest).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from flyweight.data.messages import Entity, Message
from flyweight.data.source import listed
from flyweight.data.tags import Span
from flyweight.errors import ConfigError
from flyweight.training.spellings import FORM, cased, contracted, typo
from flyweight.training.substitutes import Substitutes, WordVectors, alike, nearest

ATTEMPTS = 4  # draws a message wanted, before fewer are returned: a few short messages have few splices
PIECE = re.compile(r"\S+")
WORD = re.compile(r"\w+(?:['’-]\w+)*")
LONGEST_NGRAM = 5  # words
MIX_MASK, MIX_ALIKE, MIX_NGRAM = 0.1, 0.1, 0.25  # Tang et al.: a word is masked, replaced; a message cut to an n-gram
REPLACED = 0.2  # share of words that mask, alike and nearest replace, at least one

Edit = tuple[int, int, str]  # [start, end) of a text, and what stands there instead


class Corpus:
    """The training messages as the kinds see them; what costs time is made when first asked for."""

    def __init__(self, messages: Sequence[Message], vectors: WordVectors | None):
        self.messages, self.vectors = messages, vectors
        self.pieces = [m.text.split() for m in messages]

    @cached_property
    def words(self) -> list[list[Span]]:
        """Of each message, where its words stand."""
        return [[found.span() for found in WORD.finditer(m.text)] for m in self.messages]

    @cached_property
    def same_intent(self) -> dict[str | None, list[int]]:
        """Intent -> numbers of its messages."""
        found: dict[str | None, list[int]] = defaultdict(list)
        for i, m in enumerate(self.messages):
            found[m.intent].append(i)
        return found

    @cached_property
    def values(self) -> dict[str, list[tuple[str, Entity]]]:
        """Entity label -> its different values: what is written, and its entity."""
        found: dict[str, dict[str, Entity]] = defaultdict(dict)
        for m in self.messages:
            for e in m.entities:
                found[e.label].setdefault(m.text[e.start : e.end], e)
        return {label: list(written.items()) for label, written in found.items()}

    @cached_property
    def alike(self) -> Substitutes:
        """Words of the same distributional class."""
        return alike([[w.lower() for w in WORD.findall(m.text)] for m in self.messages])

    @cached_property
    def nearest(self) -> Substitutes:
        """Words of near embeddings."""
        return (
            {}
            if self.vectors is None
            else nearest({self.form(w) for m in self.messages for w in WORD.findall(m.text)}, self.vectors)
        )

    def form(self, word: str) -> str:
        """The word as the tokenizer sees it."""
        return word if self.vectors is not None and self.vectors.keeps_case else word.lower()


def splice(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """The beginning of this message and the end of another, cut between words."""
    return _spliced(corpus.pieces[at], corpus.pieces[rng.integers(len(corpus.messages))], rng)


def same_intent(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """A splice with a message of the same intent."""
    others = corpus.same_intent[corpus.messages[at].intent]
    return _spliced(corpus.pieces[at], corpus.pieces[others[rng.integers(len(others))]], rng)


def _spliced(first: list[str], last: list[str], rng: np.random.Generator) -> Message:
    return Message(" ".join(first[: rng.integers(len(first) + 1)] + last[rng.integers(len(last) + 1) :]))


def ngram(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """1 to 5 neighbouring words of a message."""
    return Message(_ngram(corpus.messages[at].text, rng))


def _ngram(text: str, rng: np.random.Generator) -> str:
    places = [found.span() for found in PIECE.finditer(text)]
    n = min(int(rng.integers(1, LONGEST_NGRAM + 1)), len(places))
    if not n:
        return text
    start = int(rng.integers(len(places) - n + 1))
    return text[places[start][0] : places[start + n - 1][1]]


def mask(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """Some words become the mask token: the teacher must do without them."""
    hidden = corpus.vectors.mask if corpus.vectors is not None else ""
    return _replaced(corpus, at, rng, lambda word: hidden or None)


def same_class(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """Some words become others of their distributional class."""
    return _replaced(corpus, at, rng, lambda word: _drawn(corpus.alike, word.lower(), rng))


def near(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """Some words become others whose embeddings are near."""
    return _replaced(corpus, at, rng, lambda word: _drawn(corpus.nearest, corpus.form(word), rng))


def _drawn(substitutes: Substitutes, word: str, rng: np.random.Generator) -> str | None:
    found = substitutes.get(word)
    return found[rng.integers(len(found))] if found else None


def _replaced(
    corpus: Corpus, at: int, rng: np.random.Generator, substitute: Callable[[str], str | None]
) -> Message | None:
    """Each word replaced with the chance REPLACED, at least one; None where that one has no substitute."""
    text, words = corpus.messages[at].text, corpus.words[at]
    if not words:
        return None
    chosen = rng.random(len(words)) < REPLACED
    chosen[rng.integers(len(words))] = True
    edits = []
    for (start, end), wanted in zip(words, chosen, strict=True):
        if wanted and (new := substitute(text[start:end])) is not None:
            edits.append((start, end, _like(text[start:end], new)))
    return Message(_written(text, edits)) if edits else None


def _like(old: str, new: str) -> str:
    """The new word with a capital where the old one has one."""
    return new[0].upper() + new[1:] if old[0].isupper() and new[0].islower() else new


def mix(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """Tang's rules: per word p = .1 mask, p = .1 one of the same class; then, p = .25, an n-gram of 1 to 5 words."""
    text, hidden = corpus.messages[at].text, corpus.vectors.mask if corpus.vectors is not None else ""
    edits = []
    for (start, end), chance in zip(corpus.words[at], rng.random(len(corpus.words[at])), strict=True):
        if chance < MIX_MASK and hidden:
            edits.append((start, end, hidden))
        elif MIX_MASK <= chance < MIX_MASK + MIX_ALIKE:
            old = text[start:end]
            if (new := _drawn(corpus.alike, old.lower(), rng)) is not None:
                edits.append((start, end, _like(old, new)))
    text = _written(text, edits)
    return Message(_ngram(text, rng) if rng.random() < MIX_NGRAM else text)


def slot(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """Values of the same entity label from other messages, each entity's with the chance 1/2, at least one."""
    message = corpus.messages[at]
    if not message.entities:
        return None
    chosen = rng.random(len(message.entities)) < 0.5
    chosen[rng.integers(len(message.entities))] = True
    edits, entities = [], []
    for e, wanted in zip(message.entities, chosen, strict=True):
        if wanted:
            values = corpus.values[e.label]
            written, of = values[rng.integers(len(values))]
            edits.append((e.start, e.end, written))
            e = replace(e, value=of.value)
        entities.append(e)
    return _edited(replace(message, entities=tuple(entities)), edits)


def typos(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """One or two words outside values with a slip."""
    message = corpus.messages[at]
    free = [span for span in corpus.words[at] if not _in_value(message, span)]
    if not free:
        return None
    chosen = sorted(rng.choice(len(free), size=min(len(free), int(rng.integers(1, 3))), replace=False).tolist())
    return _edited(message, [(*free[i], typo(message.text[slice(*free[i])], rng)) for i in chosen])


def contraction(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """One contraction outside values in another form."""
    message = corpus.messages[at]
    found = [f for f in FORM.finditer(message.text.replace("’", "'")) if not _in_value(message, f.span())]
    if not found:
        return None
    one = found[rng.integers(len(found))]
    return _edited(message, [(one.start(), one.end(), contracted(one.group(), rng))])


def case(corpus: Corpus, at: int, rng: np.random.Generator) -> Message | None:
    """Other capitals, where the tokenizer keeps them."""
    if corpus.vectors is None or not corpus.vectors.keeps_case:
        return None
    message = corpus.messages[at]
    text = cased(message.text, rng)
    # A value is what differs from the text.
    entities = tuple(replace(e, value=None) if e.value == text[e.start : e.end] else e for e in message.entities)
    return replace(message, text=text, entities=entities)


def _in_value(message: Message, span: Span) -> bool:
    return any(span[0] < e.end and e.start < span[1] for e in message.entities)


def _written(text: str, edits: Sequence[Edit]) -> str:
    """The text with the edits, which are in text order and do not overlap."""
    found, at = [], 0
    for start, end, new in edits:
        found += [text[at:start], new]
        at = end
    return "".join([*found, text[at:]])


def _edited(message: Message, edits: Sequence[Edit]) -> Message:
    """The message with edits, each outside its entities or one's whole value; spans move along."""

    def moved(place: int) -> int:
        return place + sum(len(new) - (end - start) for start, end, new in edits if end <= place)

    entities = [replace(e, start=moved(e.start), end=moved(e.end)) for e in message.entities]
    return replace(message, text=_written(message.text, edits), entities=tuple(entities))


Kind = Callable[[Corpus, int, np.random.Generator], Message | None]
KINDS: Mapping[str, Kind] = {
    "splice": splice,
    "same-intent": same_intent,
    "ngram": ngram,
    "mask": mask,
    "alike": same_class,
    "nearest": near,
    "mix": mix,
    "slot": slot,
    "typo": typos,
    "contraction": contraction,
    "case": case,
}


def transfer_text(
    messages: Sequence[Message],
    n: int,
    seed: int,
    never: Collection[str] = (),
    kinds: Iterable[str] = KINDS,
    vectors: WordVectors | None = None,
) -> tuple[Message, ...]:
    """At most n new messages of all kinds, each as often as the others while it finds new ones.

    None is a training text or in `never` (the texts of validation and test), and none comes twice, whatever its case
    and white space; `case` alone may differ from a training text in its capitals. vectors: see `word_vectors`; without
    them mask, nearest and case make nothing. Errors: ConfigError for an unknown kind.
    """
    return tuple(message for _, message in made(messages, n, seed, never, kinds, vectors))


def made(
    messages: Sequence[Message],
    n: int,
    seed: int,
    never: Collection[str] = (),
    kinds: Iterable[str] = KINDS,
    vectors: WordVectors | None = None,
) -> Iterator[tuple[str, Message]]:
    """`transfer_text`, each message with its kind."""
    names = tuple(kinds)
    if odd := [name for name in names if name not in KINDS]:
        raise ConfigError(f"transfer text of kind {listed(odd)}; allowed: {', '.join(KINDS)}")
    rng = np.random.default_rng(seed)
    corpus = Corpus(messages, vectors)
    forbidden = {Message(text).folded for text in never}
    taken = {m.folded for m in messages} | forbidden | {""}
    exact = {m.text for m in messages}
    n_found = 0
    for _ in range(ATTEMPTS * n if names and messages else 0):
        if n_found == n:
            break
        name = names[rng.integers(len(names))]
        found = KINDS[name](corpus, int(rng.integers(len(messages))), rng)
        if found is None or found.text in exact or found.folded in (forbidden if name == "case" else taken):
            continue
        taken.add(found.folded)
        exact.add(found.text)
        n_found += 1
        yield name, found


def splices(messages: Sequence[Message], n: int, seed: int, never: Collection[str] = ()) -> tuple[Message, ...]:
    """At most n different splices without intent and entities; none a message's own text, nor one of `never` but for
    case and white space.
    """
    rng = np.random.default_rng(seed)
    words = [m.text.split() for m in messages]
    taken, forbidden = {m.text for m in messages}, {Message(text).folded for text in never}
    found: list[Message] = []
    for _ in range(ATTEMPTS * n if len(words) > 1 else 0):
        if len(found) == n:
            break
        first, last = (words[i] for i in rng.integers(len(words), size=2))
        new = _spliced(first, last, rng)
        if new.text and new.text not in taken and new.folded not in forbidden:
            taken.add(new.text)
            found.append(new)
    return tuple(found)
