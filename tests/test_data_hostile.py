"""Whatever a data file holds, the readers give messages or one line that says what is wrong.

Run longer:  FLYWEIGHT_HOSTILE=5000 python -m pytest tests/test_data_hostile.py        examples a form and test
             python -m pytest -m slow -s tests/test_data_hostile.py                     totals of a long random run
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hostile_data import FORMS, Form, hostile, outcome, place
from hypothesis import given, settings
from hypothesis import strategies as st

EXAMPLES = settings(max_examples=int(os.environ.get("FLYWEIGHT_HOSTILE", "50")), deadline=None)
LONG_RUN = 20_000  # inputs a form


@pytest.fixture(scope="module", params=FORMS)
def form(request: pytest.FixtureRequest) -> Form:
    return FORMS[request.param]


@pytest.fixture(scope="module")
def path(form: Form, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What load_data is given; the file that `damage` writes anew for every example lies at or below it."""
    return place(form, tmp_path_factory.mktemp("hostile"))


def damage(form: Form, path: Path, raw: bytes) -> str:
    (path.parent / form.file).write_bytes(raw)
    return outcome(path)


def test_the_samples_can_be_read(form: Form, path: Path) -> None:
    assert damage(form, path, form.sample.encode()) == "read"
    assert damage(form, path, b"\xef\xbb\xbf" + form.sample.replace("\n", "\r\n").encode()) == "read"


@EXAMPLES
@given(raw=st.binary(max_size=200))
def test_any_bytes(form: Form, path: Path, raw: bytes) -> None:
    damage(form, path, raw)


@EXAMPLES
@given(text=st.text(st.characters(), max_size=200), start=st.integers(0, 400))
def test_any_text(form: Form, path: Path, text: str, start: int) -> None:
    damage(form, path, (form.sample[: start % len(form.sample)] + text).encode("utf-8", "surrogatepass"))


@EXAMPLES
@given(random=st.randoms(use_true_random=False))
def test_damaged_samples(form: Form, path: Path, random: Random) -> None:
    damage(form, path, hostile(form, random))


def deep(n: int) -> str:
    return "[" * n + "]" * n


EXAMPLES_OF = "nlu:\n- intent: a\n  examples: "
ENTITY = '{"text": "a", "entities": [{"start": 0, "end": 1, "entity": "b", "value": %s}]}'


@pytest.mark.parametrize(
    ("name", "source", "found"),
    [
        # Depth: the C stack of PyYAML's loader ended at less than 100,000 levels, Python's at about 1,000.
        ("a.yml", "nlu: " + deep(100_000), "YAML nested too deeply"),
        ("a.yml", "nlu:\n" + "- " * 100_000, "YAML nested too deeply"),
        ("a.yml", "nlu: " + "{a: " * 100_000, "YAML nested too deeply"),
        ("a.yml", EXAMPLES_OF + '|\n    - [x]{"a":' + deep(100_000), "annotation _"),
        ("a.json", deep(100_000), "not JSON _"),
        ("a.json", '{"train": ' + deep(100_000) + "}", "not JSON _"),
        ("a.json", '{"rasa_nlu_data": ' + deep(100_000) + "}", "not JSON _"),
        ("a.jsonl", '{"a":' * 100_000, "not JSON _"),
        # Numbers
        ("a.jsonl", ENTITY % ("9" * 5_000), "not JSON _"),
        ("a.jsonl", ENTITY % "1e999", "the entity's value is inf"),
        ("a.jsonl", ENTITY % "NaN", "the entity's value is nan"),
        ("a.jsonl", '{"text": "a", "intent": -Infinity}', "intent is -inf"),
        ("a.jsonl", ENTITY.replace("1,", "1e0,") % 1, "entity span _:_._"),
        ("a.jsonl", ENTITY.replace("1,", "9" * 4_000 + ",") % 1, "entity span _:_..."),
        # Text that is none
        ("a.jsonl", ENTITY % '"\\udc00"', "the entity's value is _"),
        ("a.md", "## intent:a\n- \ud800\n", "byte _xed is not UTF-_"),
        ("a.csv", "\0\0\0", "header with the one column _"),
        ("a.csv", "text,intent\na\0b,c\0\n", "read"),
        ("a.conll", "a\0 B-\0\n", "read"),
        ("s/seq.in", "to \xa0 york\nin rome\n", "the word _"),
        ("s/seq.out", "O B-\u2028 I-b\nO O\n", "tag _"),
        # Little that means much: aliases of YAML
        (
            "a.yml",
            "nlu:\n- &a\n  intent: x\n  examples: |\n" + "    - b\n" * 9_000 + "- *a\n" * 9_000,
            "an alias repeats what starts here",
        ),
        ("a.yml", EXAMPLES_OF + "\n  - &a " + "x" * 9_000 + "\n  - *a" * 9_000, "an alias repeats what starts here"),
        ("a.yml", "nlu: &a\n- *a\n", "nlu item is not a mapping"),
        # Much that must not take its square in time
        ("a.yml", EXAMPLES_OF + "|\n    - " + "[a](b)" * 20_000, "read"),
        ("a.yml", EXAMPLES_OF + "|\n    - " + "[x][" * 20_000, "read"),
        ("a.md", "## intent:a\n- b\n" + "<!--" * 100_000, "comment `<!--` is not closed"),
        ("a.md", "## intent:a\n- b\n## " + " " * 100_000 + "x", "section _"),
        ("a.conll", "# " * 100_000, "no messages"),
        ("a.json", '{"train": [["a", "b"]],' + '"x": [],' * 20_000 + '"y": []}', "key _"),
    ],
)
def test_known_attacks(tmp_path: Path, name: str, source: str, found: str) -> None:
    form = FORMS.get(f"seq folder, {name[2:]}", Form(name, ""))
    path = place(form, tmp_path)
    assert damage(form, path, source.encode("utf-8", "surrogatepass")) == found


@pytest.mark.parametrize("n", range(900, 1_001, 4))
@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("a.jsonl", "%s"),
        ("a.jsonl", '{"text": "a", "entities": [%s]}'),
        ("a.json", '{"train": [["a", "b"]], "val": %s}'),
        ("a.json", '{"rasa_nlu_data": {"common_examples": [{"text": "a", "entities": [%s]}]}}'),
        ("a.md", '## intent:a\n- [x]{"entity": %s}'),
    ],
)
def test_depth_where_pythons_stack_ends(tmp_path: Path, name: str, source: str, n: int) -> None:
    """Where parsing just fits, showing the value in an error may not."""
    path = tmp_path / name
    for nested in (deep(n), '{"a":' * n + "1" + "}" * n):
        path.write_text(source % nested)
        assert outcome(path) != "read"


@pytest.mark.slow
def test_a_long_random_run(tmp_path: Path) -> None:
    """Prints the totals: inputs, those read, different error messages, crashes."""
    n_inputs, n_read, crashes = 0, 0, list[str]()
    errors: set[str] = set()
    for name, form in FORMS.items():
        path = place(form, tmp_path / name.replace(" ", "_"))
        random = Random(name)
        outcomes: Counter[str] = Counter()
        for _ in range(LONG_RUN):
            raw = hostile(form, random)
            try:
                outcomes[damage(form, path, raw)] += 1
            except Exception as error:
                crashes.append(f"{name}: {type(error).__name__}: {error}: {raw[:200]!r}")
        n_inputs += LONG_RUN
        n_read += outcomes["read"]
        errors |= outcomes.keys()
        print(f"{name:24} {LONG_RUN} inputs, {outcomes['read']} read, {len(outcomes)} different outcomes")
    print(f"{n_inputs} inputs, {n_read} read, {len(errors) - 1} different error messages, {len(crashes)} crashes")
    assert crashes == []
