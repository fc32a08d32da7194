"""A teacher is anything that yields logits: functions and files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flyweight.answers import Labels
from flyweight.data.messages import Entity, Message
from flyweight.errors import ConfigError, DataError
from flyweight.measure.quality import evaluate
from flyweight.model.finetuned import tag_sources
from flyweight.training.logits import ABSENT, LogitsTeacher, ask_teacher

INTENTS = ("book_flight", "greet", "thanks", "weather")  # of tiny_data
TAGS = ("O", "I-city", "B-city")
NOTHING = [0.0, 0.0, 0.0, 0.0]


def lengths(texts: list[str]) -> np.ndarray:
    """Logits (N, 4) that depend on the texts."""
    return np.stack([[len(t), t.count("e"), 3.5, -len(t)] for t in texts])


# functions ----------------------------------------------------------------------------------------------------------


def test_a_function_answers_like_a_model() -> None:
    teacher = LogitsTeacher(lambda texts: np.log([[1.0, 2.0, 4.0, 1.0]] * len(texts)), INTENTS)
    [answer] = teacher.answers(["anything"])
    assert answer.probabilities == pytest.approx([1 / 8, 1 / 4, 1 / 2, 1 / 8])
    assert (answer.intent, answer.entities, answer.text) == ("thanks", (), "anything")
    assert evaluate(teacher, [Message("a", "thanks"), Message("b", "greet")]).intent_accuracy == 0.5
    assert teacher.answers([]) == []


def test_a_function_of_entities_answers_like_a_model() -> None:
    def function(texts: list[str]) -> list[Any]:
        # "to new york": I-city is likeliest on york, and B-city on new, where I-city may not begin
        tags = [[5, 0, 0], [0, 2.5, 2], [0, 3, 1]]
        return [([0, 0, 0, 9], [(0, 2), (3, 6), (7, 11)], tags) for _ in texts]

    teacher = LogitsTeacher(function, INTENTS, TAGS)
    assert teacher.labels == Labels(INTENTS, ("city",))
    [answer] = teacher.answers(["to new york"])
    assert (answer.intent, answer.entities) == ("weather", (Entity(3, 11, "city"),))
    [taught] = teacher.taught(["to new york"])
    assert taught.tags is not None
    assert taught.tags.tolist() == [[5, 0, 0], [0, 2, 2.5], [0, 1, 3]]  # in the order of labels.tags: O, B, I
    assert taught.words == [(0, 2), (3, 6), (7, 11)]


@pytest.mark.parametrize("kind", ["list", "array", "float32", "int", "tensor", "grad", "bfloat16"])
def test_functions_may_give_lists_arrays_and_tensors(kind: str) -> None:
    rows = [[1, 2, 3, 4], [4, 3, 2, 1]]
    made: Any = {
        "list": lambda: rows,
        "array": lambda: np.array(rows, np.float64),
        "float32": lambda: np.array(rows, np.float32),
        "int": lambda: np.array(rows, np.int64),
        "tensor": lambda: torch.tensor(rows, dtype=torch.float32),
        "grad": lambda: torch.tensor(rows, dtype=torch.float32, requires_grad=True),
        "bfloat16": lambda: torch.tensor(rows, dtype=torch.bfloat16),
    }[kind]()
    found = LogitsTeacher(lambda _: made, INTENTS).taught(["a", "b"])
    assert [t.intent.tolist() for t in found] == rows
    assert all(t.intent.dtype == np.float64 for t in found)


def test_a_message_without_words() -> None:
    teacher = LogitsTeacher(lambda texts: [(NOTHING, [], []) for _ in texts], INTENTS, TAGS)
    [taught] = teacher.taught([""])
    assert taught.tags is not None
    assert (taught.tags.shape, taught.words) == ((0, 3), [])
    assert teacher.answers([""])[0].entities == ()


def test_a_tag_that_the_teacher_lacks_is_impossible_whatever_the_size_of_its_logits() -> None:
    for offset in (0.0, 1000.0, -1000.0):  # a language model's scores may be -100 and less
        rows = [([0, 0, 0, 0], [(0, 1), (2, 3)], [[offset, offset + 2], [offset, offset + 1]])]
        teacher = LogitsTeacher(lambda _, rows=rows: rows, INTENTS, ("O", "B-city"))  # type: ignore[misc]
        [taught] = teacher.taught(["a b"])
        assert taught.tags is not None
        assert (taught.tags - offset).tolist() == [[0, 2, 2 + ABSENT], [0, 1, 1 + ABSENT]]
        assert teacher.answers(["a b"])[0].entities == (Entity(0, 1, "city"), Entity(2, 3, "city"))


def test_tags_without_begin_open_entities() -> None:
    # a, to, new, york, tomorrow: plain I-x tags, where neighbours of one label are one entity
    spans = [(0, 1), (2, 4), (5, 8), (9, 13), (14, 22)]
    tags = [[9.0, 0, 0], [9, 0, 0], [0, 9, 1], [0, 8, 7], [0, 3, 4]]
    teacher = LogitsTeacher(lambda _: [([0, 9], spans, tags)], ["a", "b"], ["O", "I-city", "I-date"])
    [taught] = teacher.taught(["a to new york tomorrow"])
    assert taught.tags is not None
    behind = 2.0**-10
    assert taught.tags[2].tolist() == [0, 9 - behind, 9, 1 - behind, 1]  # O, B-city, I-city, B-date, I-date
    [answer] = teacher.answers(["a to new york tomorrow"])
    assert answer.entities == (Entity(5, 13, "city"), Entity(14, 22, "date"))
    alone = LogitsTeacher(lambda _: [([0, 9], [(0, 4)], [[0, 9]])], ["a", "b"], ["O", "I-city"])
    assert alone.answers(["rome"])[0].entities == (Entity(0, 4, "city"),)


def test_a_function_and_a_folder_lack_tags_in_the_same_way() -> None:
    wanted = ["O", "B-a", "I-a", "B-b", "I-b", "B-c", "I-c"]
    found = tag_sources(["I-b", "O", "B-a", "I-a", "B-c"], wanted)
    assert found == [(1, 0), (2, 0), (3, 0), (0, 2.0**-10), (0, 0), (4, 0), (4, 50)]


@pytest.mark.parametrize(
    ("intents", "tags", "message"),
    [
        ((), (), r"a teacher of 0 intents \(nothing\); allowed: 2 or more, each once"),
        (("a",), (), r"a teacher of 1 intents \('a'\); allowed"),
        (("a", "b", "a"), (), r"a teacher of 3 intents \('a', 'b', 'a'\); allowed"),
        (("a", "b"), ("B-x", "I-x"), "a teacher's tags are 'B-x', 'I-x'; allowed: O, B-name and I-name, each once"),
        (("a", "b"), ("O", "x"), "a teacher's tags are 'O', 'x'; allowed"),
        (("a", "b"), ("O", "B-"), "a teacher's tags are 'O', 'B-'; allowed"),
        (("a", "b"), ("O", "B-x", "O"), "a teacher's tags are 'O', 'B-x', 'O'; allowed"),
        (("a", "b"), ("O",), "a teacher's tags are 'O'; allowed"),
    ],
)
def test_classes_that_are_none(intents: tuple[str, ...], tags: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LogitsTeacher(lengths, intents, tags)


BAD_ROWS: dict[str, tuple[Sequence[str], Any, str]] = {
    "nothing": ((), None, "a teacher gave 0 rows for 2 texts; one row a text is needed"),
    "too few": ((), [NOTHING], "a teacher gave 1 rows for 2 texts; one row a text is needed"),
    "too many": ((), [NOTHING] * 3, "a teacher gave 3 rows for 2 texts; one row a text is needed"),
    "narrow": ((), np.zeros((2, 3)), "intent logits for 'a b' of shape (3,): [0.0, 0.0, 0.0]; allowed: numbers of"),
    "nan": ((), np.full((2, 4), np.nan), "intent logits for 'a b' of shape (4,): [nan, nan, nan, nan]; allowed"),
    "infinite": ((), [[0, 0, 0, -np.inf]] * 2, "allowed: numbers of shape (4,), at most 1e+30 in size"),
    "beyond float32": ((), [[0, 0, 0, 1e39]] * 2, "allowed: numbers of shape (4,), at most 1e+30 in size"),
    "words": ((), [["1", "2", "3", "4"]] * 2, "allowed: numbers of shape (4,)"),
    "ragged": ((), [[[1], [2, 3], [4], [5]]] * 2, "allowed: numbers of shape (4,)"),
    "no triple": (TAGS, np.zeros((2, 4)), "ndarray for 'a b'; allowed: intent logits, words and tag logits, since"),
    "none in triple": (TAGS, [(NOTHING, None, None)] * 2, "tuple for 'a b'; allowed: intent logits, words and tag"),
    "few tags": (TAGS, [(NOTHING, [(0, 1)], [[0, 0]])] * 2, "tag logits for 'a b' of shape (1, 2): [[0, 0]]; allowed"),
    "tags, no words": (TAGS, [(NOTHING, [], [[0, 0, 0]])] * 2, "tag logits for 'a b' of shape (1, 3)"),
    "words, no tags": (TAGS, [(NOTHING, [(0, 1)], [])] * 2, "tag logits for 'a b' of shape (0,): []; allowed"),
    "behind the text": (TAGS, [(NOTHING, [(2, 4)], [[0, 0, 0]])] * 2, "the words [(2, 4)] of 'a b'; allowed: spans"),
    "backwards": (TAGS, [(NOTHING, [(1, 0)], [[0, 0, 0]])] * 2, "0 <= start < end <= 3"),
    "negative": (TAGS, [(NOTHING, [(-1, 1)], [[0, 0, 0]])] * 2, "0 <= start < end <= 3"),
    "halves": (TAGS, [(NOTHING, [(0.5, 1)], [[0, 0, 0]])] * 2, "0 <= start < end <= 3"),
    "no spans": (TAGS, [(NOTHING, [0], [[0, 0, 0]])] * 2, "words of 'a b' of shape (1,): [0]; allowed: numbers of"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_functions_that_give_no_logits(what: str) -> None:
    tags, rows, message = BAD_ROWS[what]
    with pytest.raises(DataError) as error:
        LogitsTeacher(lambda _: rows, INTENTS, tags).taught(["a b", "c d"])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_mistakes_of_the_function_are_its_own() -> None:
    def function(_: list[str]) -> Any:
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        LogitsTeacher(function, INTENTS).taught(["a"])


def test_the_teacher_is_asked_in_blocks_and_in_order() -> None:
    sizes = []

    def function(texts: list[str]) -> np.ndarray:
        sizes.append(len(texts))
        return np.array([[float(text), 0, 0, 0] for text in texts])

    found = ask_teacher(LogitsTeacher(function, INTENTS), [str(i) for i in range(600)], progress=False)
    assert [t.intent[0] for t in found] == list(range(600))
    assert sizes == [256, 256, 88]


# files --------------------------------------------------------------------------------------------------------------

HEAD = {"intents": list(INTENTS)}
TAG_HEAD = {"intents": list(INTENTS), "tags": list(TAGS)}
ROW = {"text": "a b", "intent": NOTHING}
TAG_ROW = {"text": "a b", "intent": NOTHING, "words": [[0, 1]], "tags": [[1, 2, 3]]}


def written(path: Path, *rows: Any) -> Path:
    """A JSON Lines file; text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_file_says_what_the_function_says(tmp_path: Path) -> None:
    texts = ["hello", 'say "hé"', ""]
    rows = [{"text": t, "intent": row.tolist()} for t, row in zip(texts, lengths(texts), strict=True)]
    teacher = LogitsTeacher.from_file(written(tmp_path / "t.jsonl", HEAD, "", *rows, "  "))
    wanted = LogitsTeacher(lengths, INTENTS)
    assert teacher.labels == wanted.labels
    for a, b in zip(teacher.taught(texts[::-1]), wanted.taught(texts[::-1]), strict=True):
        assert a.intent.tolist() == b.intent.tolist()
    assert [a.frame for a in teacher.answers(texts)] == [a.frame for a in wanted.answers(texts)]


def test_a_file_with_entities(tmp_path: Path) -> None:
    row = {"text": "to Rome", "intent": [0, 0, 9, 0], "words": [[0, 2], [3, 7]], "tags": [[5, 0, -2], [-1, 0, 4]]}
    empty = {"text": "", "intent": [0, 0, 9, 0], "words": [], "tags": []}
    teacher = LogitsTeacher.from_file(
        written(tmp_path / "t.jsonl", TAG_HEAD, row, empty, row)
    )  # twice the same is fine
    assert teacher.answers(["to Rome", ""])[0].entities == (Entity(3, 7, "city"),)


def test_of_equal_texts_the_last_counts(tmp_path: Path) -> None:
    # A teacher asked in batches says nearly, not exactly, the same of a message that stands twice.
    teacher = LogitsTeacher.from_file(written(tmp_path / "t.jsonl", HEAD, ROW, ROW | {"intent": [1e-6, 0, 0, 0]}))
    assert teacher.taught(["a b"])[0].intent.tolist() == [1e-6, 0, 0, 0]


def test_other_line_ends_and_a_mark_at_the_start(tmp_path: Path) -> None:
    source = "\ufeff" + "\r\n".join(json.dumps(row) for row in (HEAD, ROW)) + "\r\n"
    (tmp_path / "t.jsonl").write_bytes(source.encode())
    assert LogitsTeacher.from_file(tmp_path / "t.jsonl").taught(["a b"])[0].intent.tolist() == NOTHING


MALFORMED: dict[str, tuple[list[Any], int | None, str]] = {
    "empty": ([], None, "no logits; allowed: a line with the names of the classes, then one line a text"),
    "only names": ([HEAD], None, "no logits; allowed: a line with the names"),
    "no names": ([ROW], 1, 'intents is None; allowed: a first line {"intents": [names], "tags": [names]}'),
    "names are no list": ([{"intents": "greet"}, ROW], 1, "intents is 'greet'; allowed: a first line"),
    "names are numbers": ([{"intents": [1, 2]}, ROW], 1, "intents is [1, 2]; allowed: a first line"),
    "one name": ([{"intents": ["greet"]}, ROW], 1, "a teacher of 1 intents ('greet'); allowed: 2 or more, each once"),
    "a name twice": ([{"intents": ["a", "a"]}, ROW], 1, "a teacher of 2 intents ('a', 'a'); allowed: 2 or more"),
    "tags are no tags": ([HEAD | {"tags": ["city"]}, ROW], 1, "a teacher's tags are 'city'; allowed: O, B-name"),
    "tags are no list": ([HEAD | {"tags": {"O": 1}}, ROW], 1, "tags is {'O': 1}; allowed: a first line"),
    "no JSON": ([HEAD, ROW, "", "{'text': 1}"], 4, "not JSON (JSONDecodeError); allowed: one JSON object a line"),
    "nested": ([HEAD, "[" * 100_000], 2, "not JSON (RecursionError); allowed: one JSON object a line"),
    "a list": ([HEAD, [1, 2]], 2, "row is [1, 2]; allowed: one JSON object a line"),
    "no text": ([HEAD, {"intent": NOTHING}], 2, "row without text; allowed: the keys text, intent"),
    "text is none": ([HEAD, ROW | {"text": None}], 2, "row without text; allowed: the keys text, intent"),
    "no intent": ([HEAD, {"text": "a"}], 2, "row without intent; allowed: the keys text, intent"),
    "no words": ([TAG_HEAD, ROW], 2, "row without words; allowed: the keys text, intent, words, tags"),
    "narrow": ([HEAD, ROW, ROW | {"text": "c", "intent": [1, 2]}], 3, "intent logits for 'c' of shape (2,): [1, 2]"),
    "nan": ([HEAD, '{"text": "a", "intent": [NaN, 0, 0, 0]}'], 2, "allowed: numbers of shape (4,)"),
    "infinite": ([HEAD, '{"text": "a", "intent": [-Infinity, 0, 0, 0]}'], 2, "allowed: numbers of shape (4,)"),
    "huge": ([HEAD, '{"text": "a", "intent": [1e39, 0, 0, 0]}'], 2, "allowed: numbers of shape (4,)"),
    "400 digits": ([HEAD, f'{{"text": "a", "intent": [1{"0" * 400}, 0, 0, 0]}}'], 2, "allowed: numbers of shape (4,)"),
    "words as numbers": ([HEAD, ROW | {"intent": ["1", "2", "3", "4"]}], 2, "allowed: numbers of shape (4,)"),
    "truth as numbers": ([HEAD, ROW | {"intent": [True, False, True, True]}], 2, "allowed: numbers of shape (4,)"),
    "a number": ([HEAD, ROW | {"intent": 3}], 2, "intent logits for 'a b' of shape (): 3; allowed: numbers of shape"),
    "nothing": ([HEAD, ROW | {"intent": None}], 2, "allowed: numbers of shape (4,)"),
    "an object": ([HEAD, ROW | {"intent": {"a": 1}}], 2, "allowed: numbers of shape (4,)"),
    "tags without words": ([TAG_HEAD, TAG_ROW | {"words": []}], 2, "tag logits for 'a b' of shape (1, 3)"),
    "words that are no list": ([TAG_HEAD, TAG_ROW | {"words": 3}], 2, "allowed: intent logits, words and tag logits"),
    "few tags": ([TAG_HEAD, TAG_ROW | {"tags": [[1, 2]]}], 2, "tag logits for 'a b' of shape (1, 2): [[1, 2]]"),
    "ragged tags": ([TAG_HEAD, TAG_ROW | {"words": [[0, 1], [2, 3]], "tags": [[1, 2, 3], [1]]}], 2, "shape (2, 3)"),
    "words behind the text": ([TAG_HEAD, TAG_ROW | {"words": [[0, 4]]}], 2, "0 <= start < end <= 3"),
    "words of half letters": ([TAG_HEAD, TAG_ROW | {"words": [[0, 0.5]]}], 2, "0 <= start < end <= 3"),
    "words of one number": ([TAG_HEAD, TAG_ROW | {"words": [[0]]}], 2, "words of 'a b' of shape (1, 1): [[0]]"),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_files_that_are_none(what: str, tmp_path: Path) -> None:
    rows, line, message = MALFORMED[what]
    path = written(tmp_path / "t.jsonl", *rows)
    with pytest.raises(DataError) as error:
        LogitsTeacher.from_file(path)
    assert (error.value.path, error.value.line) == (path, line)
    assert str(error.value).startswith(f"{path}: " if line is None else f"{path}:{line}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        LogitsTeacher.from_file(tmp_path / "none.jsonl")
    (tmp_path / "t.jsonl").write_bytes(b'{"intents": ["a", "b"]}\n\xff\n')
    with pytest.raises(DataError, match=r"t\.jsonl:2: byte 0xff is not UTF-8"):
        LogitsTeacher.from_file(tmp_path / "t.jsonl")


def test_a_text_that_the_file_lacks(tmp_path: Path) -> None:
    teacher = LogitsTeacher.from_file(written(tmp_path / "t.jsonl", HEAD, ROW))
    with pytest.raises(DataError) as error:
        teacher.taught(["a b", "A b", "c"])
    assert str(error.value) == (
        f"{tmp_path / 't.jsonl'}: no logits of 'A b' (2 of 3 texts asked for); "
        "a file of logits answers the texts that it holds, character by character; add a line for each"
    )
