"""Hostile data files: a valid sample of every form, and what a random generator makes of it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from flyweight.data import load_data, read_messages
from flyweight.errors import FlyweightError

YAML = """\
version: "3.1"
nlu:
- intent: book
  examples: |
    - to [Berlin](city) and [NYC](city:New York)
    - [LA]{"entity": "city", "role": "to", "value": "Los Angeles"}
- intent: chitchat/name
  examples:
  - text: |
      who are [you](bot)?
    metadata: {tone: plain}
  - no
- synonym: New York
  examples: |
    - Big Apple
- lookup: city
  examples: "- Berlin\\n- Rome"
- regex: zip
  examples: |
    - [0-9]{5}
"""
MARKDOWN = """\
# Title
## intent:book
- to [Berlin](city) and [NYC](city:New York)
* [LA]{"entity": "city", "role": "to", "value": "Los Angeles"}
<!-- a comment
 over lines -->
+ [x][{"entity": "a"}]
## synonym:New York
- Big Apple
## regex:zip
- [0-9]{5}
## lookup:city
cities.txt
- Rome
"""
ROW = {
    "text": "to NYC",
    "intent": "go",
    "entities": [{"start": 3, "end": 6, "entity": "city", "value": "New York", "role": "to", "group": "1"}],
}
RASA_JSON = {
    "rasa_nlu_data": {
        "common_examples": [ROW, {"text": "hi", "intent": "greet"}],
        "intent_examples": [],
        "entity_examples": [{"text": "Rome", "entities": [{"start": 0, "end": 4, "entity": "city"}]}],
        "entity_synonyms": [{"value": "New York", "synonyms": ["Big Apple"]}],
        "regex_features": [{"name": "zip", "pattern": "[0-9]{5}"}],
        "lookup_tables": [{"name": "city", "elements": ["Rome"]}, {"name": "city", "elements": "cities.txt"}],
    }
}
CLINC = {"train": [["a b", "x"], ["c", "y"]], "val": [["d", "x"]], "oos_train": [["e", "oos"]], "test": [["f", "y"]]}
CSV = 'text,intent\nhi,greet\n"say ""yes"", twice",affirm\n"two\nlines",affirm\n'
BIO = "# intent: go\n# id 7\nto O\nNew B-city\nYork E-city\n\n-DOCSTART- O\n\n# O\n1 S-number\n"
SEQ = {"seq.in": "to new york\nin rome\n", "seq.out": "O B-city I-city\nO B-city\n", "label": "go\nstay\n"}


@dataclass(frozen=True)
class Form:
    """A file to damage, its sample, what lies beside it, and what load_data is given (a folder, or else the file)."""

    file: str
    sample: str
    beside: dict[str, str] = field(default_factory=dict)
    given: str = ""

    @property
    def tree(self) -> object:
        """The sample as JSON (of JSON Lines the first); None for other forms."""
        return json.loads(self.sample.partition("\n")[0]) if self.sample[0] in "[{" else None


FORMS = {
    "rasa yaml": Form("nlu.yml", YAML),
    "rasa yaml in json": Form("nlu.yml", json.dumps({"nlu": [{"intent": "a", "examples": ["b", {"text": "[c](d)"}]}]})),
    "rasa markdown": Form("nlu.md", MARKDOWN, {"cities.txt": "Berlin\n"}),
    "rasa json": Form("nlu.json", json.dumps(RASA_JSON), {"cities.txt": "Berlin\n"}),
    "csv": Form("a.csv", CSV),
    "tsv": Form("a.tsv", CSV.replace(",", "\t")),
    "jsonl": Form("a.jsonl", json.dumps(ROW) + "\n" + json.dumps({"Query": "hi", "label": 3}) + "\n"),
    "json rows": Form("a.json", json.dumps([ROW, {"Query": "hi", "label": 3}])),
    "clinc": Form("a.json", json.dumps(CLINC)),
    "bio": Form("a.conll", BIO),
    "bio in txt": Form("a.txt", BIO),
    **{f"seq folder, {name}": Form(f"s/{name}", SEQ[name], {f"s/{n}": t for n, t in SEQ.items()}, "s") for name in SEQ},
    "folder of parts": Form("d/train.csv", CSV, {"d/test.csv": CSV, "d/valid.csv": CSV}, "d"),
    "folder of rasa files": Form("r/nlu.md", MARKDOWN, {"r/cities.txt": "Berlin\n", "r/b.yml": YAML}, "r"),
}

# What readers look for, and what text can hold that few expect.
PIECES = [
    *"[](){}\"'\\:;,#|>-*+&!%@`~?=/<.0 \t\r\n",
    *(
        "\x00",
        "\x07",
        "\x0b",
        "\x0c",
        "\x1c",
        "\x85",
        "\xa0",
        "\u200b",
        "\u2028",
        "\ufeff",
        "\ud83d",
        "\U0001f600",
        "é",
    ),
    *(
        "\r\n",
        "\n\n",
        "- ",
        "## ",
        "## intent:x\n",
        "<!--",
        "-->",
        "nlu:",
        "*a",
        "&a ",
        "<<: *a",
        "|\n",
        "[x](",
        "[x]{",
    ),
    *(
        '{"entity": "a"}',
        '[x]{"entity": "a", "value": NaN}',
        "(a:b)",
        "[ ](a)",
        '"text": ',
        '"train": [',
        "# intent: y\n",
    ),
    *(
        "B-a",
        "I-a",
        "L-a",
        "O\n",
        "B-",
        "B-a#b",
        "-DOCSTART-",
        "null",
        "true",
        "NaN",
        "-Infinity",
        "1e999",
        "9" * 5_000,
    ),
    *(
        '"\\ud800"',
        "\\u0000",
        "[" * 2_000,
        '{"a":' * 2_000,
        "- " * 2_000,
        "../",
        "/dev/zero",
        "~",
        "!!python/name:os.x ",
    ),
]
VALUES = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2**70,
        0.5,
        1e999,
        float("nan"),
        "",
        " ",
        "a",
        "\ud800",
        "a#b",
        "\n",
        "\xa0",
        "x" * 300,
    ),
    *([], {}, [[]], [None], {"": None}, {"text": "a"}, {"entity": "a"}, ["a", "b"], "cities.txt", "/dev/zero", "\x00"),
]


def hostile(form: Form, random: Random) -> bytes:
    """A damaged sample: characters, bytes or JSON values deleted, doubled, moved, flipped, put in."""
    kinds = [_characters, _characters, _bytes, _soup]
    if form.tree is not None:
        kinds += [_values, _values, _values]
    return random.choice(kinds)(form, random)


def _characters(form: Form, random: Random) -> bytes:
    text = form.sample
    for _ in range(random.choice((1, 1, 2, 4))):
        words = [match.span() for match in re.finditer(r"\w+", text)] or [(0, 0)]
        start = random.randrange(len(text) + 1)
        end = min(len(text), start + random.choice((0, 1, 1, 5, 40)))
        start, end = random.choice(((start, end), random.choice(words)))
        cut = text[start:end]
        put = random.choice(("", random.choice(PIECES), cut * 2, cut[::-1], cut.upper()))
        text = text[:start] + put + text[end:]
    return text.encode("utf-8", "surrogatepass")


def _bytes(form: Form, random: Random) -> bytes:
    raw = bytearray(form.sample, "utf-8")
    for _ in range(random.choice((1, 2, 8))):
        raw[random.randrange(len(raw))] ^= 1 << random.randrange(8)
    return bytes(raw) if random.random() < 0.8 else form.sample.encode(random.choice(("utf-16", "utf-8-sig", "utf-32")))


def _soup(form: Form, random: Random) -> bytes:
    words = re.findall(r"\w+|\W", form.sample)
    text = "".join(random.choice(random.choice((words, PIECES))) for _ in range(random.randrange(60)))
    return (form.sample[: random.randrange(len(form.sample))] + text).encode("utf-8", "surrogatepass")


def _values(form: Form, random: Random) -> bytes:
    tree = form.tree
    for _ in range(random.choice((1, 1, 2))):
        tree = _damaged(tree, random)
    return json.dumps(tree, ensure_ascii=random.random() < 0.8).encode("utf-8", "surrogatepass")


def _damaged(tree: object, random: Random) -> object:
    """The tree with one value replaced, one key renamed or one element doubled or dropped."""
    if not isinstance(tree, list | dict) or not tree or random.random() < 0.1:
        return random.choice(VALUES)
    items = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))
    at = random.randrange(len(items))
    key, value = items[at]
    change = random.random()
    if change < 0.1:
        del items[at]
    elif change < 0.2:
        items.append((random.choice(("", "x", "train", "text", "entity")), value))
    else:
        items[at] = (key, _damaged(value, random))
    return dict(items) if isinstance(tree, dict) else [value for _, value in items]


def place(form: Form, folder: Path) -> Path:
    """Write the sample and what lies beside it; the path for load_data."""
    for name, text in {**form.beside, form.file: form.sample}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder / (form.given or form.file)


def outcome(path: Path) -> str:
    """ "read", or the words of a FlyweightError without names and numbers; fails for all else that can go wrong."""
    try:
        messages = read_messages(path)
        data = load_data(path)
    except FlyweightError as error:
        text = str(error)
        assert len(text.splitlines()) == 1, ascii(text)
        assert text.encode("utf-8")
        assert len(text) < 2_000 + 2 * len(str(path)), text
        found = text.replace(str(path), "").partition(": ")[2].partition("; allowed")[0]
        return re.sub(r"(?<!\w)['\"].*|\(.*|[\[{].*|\d+", "_", found)
    assert sorted(data.messages, key=repr) == sorted(messages, key=repr)
    assert data.fingerprint()
    for message in messages:
        assert message.text.strip()
        assert message.text.encode("utf-8")
        assert message.intent is None or (message.intent.strip() and message.intent.encode("utf-8"))
        end = 0
        for entity in message.entities:
            assert end <= entity.start < entity.end <= len(message.text)
            assert message.text[entity.start : entity.end].strip()
            assert entity.entity.strip()
            assert "#" not in f"{entity.entity}{entity.role}{entity.group}"
            assert f"{entity.entity}{entity.value}{entity.role}{entity.group}".encode()
            end = entity.end
    assert "\n" not in "".join(data.notes)
    return "read"
