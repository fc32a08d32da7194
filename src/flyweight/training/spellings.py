"""The same words written otherwise: typos, contractions, capitals. What they say, and whose values they are, stays.

typo            a word with one slip of the finger
CONTRACTIONS    long and short forms, of which one is written for another
cased           a text in lower case, capitals, or with a capital first
"""

from __future__ import annotations

import re

import numpy as np

LEAST_LETTERS = 4  # in shorter words a slip makes another word
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")

CONTRACTIONS = (
    *(("what is", "what's", "whats"), ("that is", "that's", "thats"), ("who is", "who's", "whos")),
    *(("where is", "where's", "wheres"), ("when is", "when's", "whens"), ("how is", "how's", "hows")),
    *(("there is", "there's", "theres"), ("it is", "it's"), ("here is", "here's"), ("let us", "let's", "lets")),
    *(("i am", "i'm", "im"), ("i will", "i'll"), ("i would", "i'd"), ("we will", "we'll"), ("it will", "it'll")),
    *(("you are", "you're", "youre"), ("we are", "we're"), ("they are", "they're", "theyre")),
    *(("do not", "don't", "dont"), ("does not", "doesn't", "doesnt"), ("did not", "didn't", "didnt")),
    *(("is not", "isn't", "isnt"), ("are not", "aren't", "arent"), ("was not", "wasn't", "wasnt")),
    *(("were not", "weren't", "werent"), ("have not", "haven't", "havent"), ("has not", "hasn't", "hasnt")),
    *(("had not", "hadn't", "hadnt"), ("will not", "won't"), ("would not", "wouldn't", "wouldnt")),
    *(("cannot", "can't", "can not"), ("could not", "couldn't", "couldnt"), ("should not", "shouldn't", "shouldnt")),
    *(("please", "pls", "plz"), ("you", "u"), ("thanks", "thx")),
)
FORMS = {form: row for row in CONTRACTIONS for form in row}
# Longest first: of "can not" and "can" the longer one is meant.
# (?i:...) also takes letters that fold to ours, such as the dotless i: `contracted` leaves those as they are.
FORM = re.compile(rf"\b({'|'.join(sorted(FORMS, key=len, reverse=True))})\b(?!')", re.IGNORECASE)


def _neighbours() -> dict[str, str]:
    """Letter -> letters beside it on the keyboard: in its row, and in the rows above and below."""
    places = {letter: (x + 0.5 * y, y) for y, row in enumerate(ROWS) for x, letter in enumerate(row)}
    return {
        a: "".join(b for b, (u, v) in places.items() if b != a and abs(u - x) <= 1 and abs(v - y) <= 1)
        for a, (x, y) in places.items()
    }


NEIGHBOURS = _neighbours()


def typo(word: str, rng: np.random.Generator) -> str:
    """The word with two letters in the wrong order, one left out, doubled, or the key beside it; the first stays.

    Words of fewer than LEAST_LETTERS letters, or of other characters than letters, come back as they are.
    """
    if len(word) < LEAST_LETTERS or not word.isalpha():
        return word
    at = int(rng.integers(1, len(word)))
    slip = ("order", "missing", "doubled", "beside")[rng.integers(4)]
    head, letter, tail = word[:at], word[at], word[at + 1 :]
    if slip == "order" and tail:
        return head + tail[0] + letter + tail[1:]
    if slip == "missing":
        return head + tail
    near = NEIGHBOURS.get(letter.lower())
    if slip == "beside" and near:
        beside = near[rng.integers(len(near))]
        return head + (beside.upper() if letter.isupper() else beside) + tail
    return head + letter + letter + tail


def contracted(form: str, rng: np.random.Generator) -> str:
    """Another form of the same words, with a capital where the form has one."""
    row = FORMS.get(form.lower())
    if row is None:
        return form
    others = [other for other in row if other != form.lower()]
    other = others[rng.integers(len(others))]
    return other[0].upper() + other[1:] if form[0].isupper() else other


def cased(text: str, rng: np.random.Generator) -> str:
    """The text in lower case, in capitals, or as it is but with a capital (or a small letter) first.

    Unchanged where that would move characters: the capital of a sharp s is two letters.
    """
    first = text[:1].lower() if text[:1].isupper() else text[:1].upper()
    made = (text.lower(), text.upper(), first + text[1:])[rng.integers(3)]
    return made if len(made) == len(text) else text
