"""Near-duplicates: messages that say almost the same across parts or intents.

normal(text)      case folded, runs of anything but letters -> one blank      "Call me at 7!" -> "call me at"
template(m)       normal, {label} for each entity, three words beside them    "fly to Rome at 7" -> "fly to {city} at"
J(a, b)           |A & B| / |A | B|, A = the set of 3-grams of " normal(a) "
near-duplicates   J >= 4/5, but not equal folded texts (which are exact duplicates)
same template     equal templates of messages with entities, which are no near-duplicates

All pairs with J >= 4/5 are found by prefix filtering (Chaudhuri et al. 2006; Bayardo et al. 2007): of two such sets,
each sorted by rarity, the first |A| - ceil(4|A|/5) + 1 grams of the larger and the first |B| - ceil(8|B|/9) + 1 of the
smaller one have one in common; only such pairs are compared. Nothing is missed, and 13,000 messages take seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from unicodedata import category

from flyweight.data.messages import Message

TEMPLATE_WORDS = 3  # fewer words beside the entities say too little: "to {city}"


def normal(text: str) -> str:
    """The text in lower case, letters only: what else there is becomes one blank."""
    # Letters and the marks on them: vowel signs of Indian scripts are marks, which isalpha() denies.
    return " ".join("".join(c if category(c)[0] in "LM" else " " for c in text.casefold()).split())


def template(message: Message) -> str | None:
    """The normal text with `{label}` for each entity; None without entities or with fewer than three other words."""
    pieces, done = [], 0
    for e in message.entities:
        pieces += [normal(message.text[done : e.start]), f"{{{e.label}}}"]
        done = e.end
    pieces.append(normal(message.text[done:]))
    n_words = sum(len(piece.split()) for piece in pieces[::2])
    return " ".join(filter(None, pieces)) if message.entities and n_words >= TEMPLATE_WORDS else None


def trigrams(text: str) -> Set[str]:
    """The set of 3-grams of a normal text with a blank at each end."""
    padded = f" {text} "
    return {padded[i : i + 3] for i in range(len(padded) - 2)}


def similarity(a: str, b: str) -> float:
    """J of two texts, in [0, 1]; 0 where neither has letters."""
    left, right = trigrams(normal(a)), trigrams(normal(b))
    return len(left & right) / len(left | right) if left | right else 0.0


def similar_pairs(texts: Sequence[str], groups: Sequence[object] | None = None) -> Iterator[tuple[int, int]]:
    """The indices of all pairs of normal texts with J >= 4/5, but for pairs within one of the `groups`."""
    sets = [trigrams(text) for text in texts]
    sizes = [len(grams) for grams in sets]
    counts = Counter(gram for grams in sets for gram in grams)
    rank = {gram: i for i, gram in enumerate(sorted(counts, key=lambda gram: (counts[gram], gram)))}
    index: dict[str, list[int]] = defaultdict(list)  # gram -> texts that have it among their first, by size
    for i in sorted(range(len(texts)), key=sizes.__getitem__):
        n = sizes[i]
        rare_first = sorted(sets[i], key=rank.__getitem__)
        smallest = -(-4 * n // 5)
        candidates: set[int] = set()
        for gram in rare_first[: n - smallest + 1]:
            # All texts to come are at least as large, so what is too small now is too small for them.
            del index[gram][: bisect_left(index[gram], smallest, key=sizes.__getitem__)]
            candidates.update(index[gram])
        for j in sorted(candidates):
            # J >= 4/5  <=>  5 * both >= 4 * (n + m - both)
            if (groups is None or groups[i] != groups[j]) and 9 * len(sets[i] & sets[j]) >= 4 * (n + sizes[j]):
                yield j, i
        for gram in rare_first[: n - -(-8 * n // 9) + 1]:
            index[gram].append(i)


@dataclass
class NearDuplicates:
    """Pairs of indices into the messages: (a message, the first other one that it resembles).

    across_parts: a message of a later part and one of an earlier part; across_intents: messages of different intents.
    """

    across_parts: list[tuple[int, int]] = field(default_factory=list)
    across_intents: list[tuple[int, int]] = field(default_factory=list)
    templates_across_parts: list[tuple[int, int]] = field(default_factory=list)
    templates_across_intents: list[tuple[int, int]] = field(default_factory=list)


def near_duplicates(messages: Sequence[Message], parts: Sequence[int]) -> NearDuplicates:
    """Near-duplicates and equal templates; `parts` numbers each message's part: 0 train, 1 validation, 2 test.

    Exact duplicates are left out: a message that stands in an earlier part too is in no pair across parts, a text that
    has several intents in no pair across intents.
    """
    first_part: dict[str, int] = {}
    intents: dict[str, set[str]] = defaultdict(set)
    for m, part in zip(messages, parts, strict=True):
        first_part[m.folded] = min(part, first_part.get(m.folded, part))
        if m.intent is not None:
            intents[m.folded].add(m.intent)
    asks_parts = {i for i, m in enumerate(messages) if 0 < parts[i] == first_part[m.folded]}
    asks_intents = {i for i, m in enumerate(messages) if m.intent is not None and len(intents[m.folded]) == 1}

    found = NearDuplicates()
    texts = _Forms([normal(m.text) for m in messages], messages, parts)
    names = list(texts.members)
    neighbours: dict[str, list[str]] = defaultdict(list)
    for a, b in similar_pairs(names, [texts.group(name) for name in names]):
        neighbours[names[a]].append(names[b])
        neighbours[names[b]].append(names[a])
    found.across_parts = texts.pairs_across_parts(asks_parts, neighbours)
    found.across_intents = texts.pairs_across_intents(asks_intents, neighbours)

    templates = _Forms([template(m) or "" for m in messages], messages, parts)
    found.templates_across_parts = templates.pairs_across_parts(asks_parts - {i for i, _ in found.across_parts}, {})
    asks_intents -= {i for i, _ in found.across_intents}
    found.templates_across_intents = templates.pairs_across_intents(asks_intents, {})
    return found


class _Forms:
    """Messages by a form of theirs (normal text, template); an empty form is none.

    members: form -> {part: first message}, {intent: first message}.
    """

    def __init__(self, forms: Sequence[str], messages: Sequence[Message], parts: Sequence[int]):
        self.forms, self.messages, self.parts = forms, messages, parts
        self.members: dict[str, tuple[dict[int, int], dict[str | None, int]]] = {}
        for i, form in enumerate(forms):
            if form:
                in_part, with_intent = self.members.setdefault(form, ({}, {}))
                in_part.setdefault(parts[i], i)
                with_intent.setdefault(messages[i].intent, i)

    def group(self, form: str) -> object:
        """Forms of one part and one intent: nothing between them is of interest."""
        in_part, with_intent = self.members[form]
        return (*in_part, *with_intent) if len(in_part) == len(with_intent) == 1 else form

    def pairs_across_parts(self, asking: Set[int], neighbours: Mapping[str, Sequence[str]]) -> list[tuple[int, int]]:
        """For each message that asks, the first one of the same or a neighbouring form in an earlier part."""
        pairs = []
        for i in sorted(asking):
            near = (self.members[form][0] for form in self._around(i, neighbours))
            other = next((j for in_part in near for part, j in sorted(in_part.items()) if part < self.parts[i]), None)
            if other is not None:
                pairs.append((i, other))
        return pairs

    def pairs_across_intents(self, asking: Set[int], neighbours: Mapping[str, Sequence[str]]) -> list[tuple[int, int]]:
        """The same with another intent, in any part."""
        pairs = []
        for i in sorted(asking):
            near = (self.members[form][1] for form in self._around(i, neighbours))
            own = (None, self.messages[i].intent)
            other = next((j for with_intent in near for intent, j in with_intent.items() if intent not in own), None)
            if other is not None:
                pairs.append((i, other))
        return pairs

    def _around(self, i: int, neighbours: Mapping[str, Sequence[str]]) -> list[str]:
        form = self.forms[i]
        return [form, *neighbours.get(form, ())] if form else []
