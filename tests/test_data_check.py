"""The check: every kind of finding with what it tells, faults of a file told one by one, and real data."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from flyweight.data import Entity, Message, NLUData, load_data
from flyweight.data.check import BARE, FEW, KINDS, LONG, check, count
from flyweight.data.faults import MOST, read_despite_faults
from flyweight.data.load import FORMS
from flyweight.errors import DataError


def told(data: NLUData, kind: str, n_examples: int = 9) -> list[str]:
    """The examples of the finding; none without it."""
    [finding, *_] = [f for f in check(data, n_examples=n_examples) if f.kind == kind] or [None]
    assert finding is None or (finding.severity, finding.what) == KINDS[kind]
    return list(finding.examples) if finding else []


def spans(text: str, *entities: tuple[str, str]) -> Message:
    """A message whose entities are written out: (span, type), in text order."""
    found, at = [], 0
    for span, entity in entities:
        at = text.index(span, at)
        found.append(Entity(at, at + len(span), entity))
        at += len(span)
    return Message(text, "i", tuple(found))


CLEAN = tuple(Message(f"{word} it is", "i") for word in ("one", "blue", "cold", "late", "mine"))


def test_flawless_data_have_no_finding() -> None:
    assert check(NLUData(CLEAN)) == []
    assert check(NLUData(())) == []


def test_counts() -> None:
    data = (spans("to Rome", ("Rome", "city")), Message("To  rome"), Message("hi", "greet"))
    assert asdict(count(data)) == {
        "messages": 3,
        "texts": 2,
        "intents": 2,
        "without_intent": 1,
        "entity_spans": 1,
        "entity_types": 1,
    }


def test_errors_come_first_and_examples_are_cut() -> None:
    train = (*CLEAN, *CLEAN, Message("one it is", "j"))
    found = check(NLUData(train, test=CLEAN[:1]), n_examples=2)
    assert [(f.kind, f.severity, f.count, len(f.examples)) for f in found] == [
        ("contradiction", "error", 1, 1),
        ("leak", "error", 1, 1),
        ("few messages", "warning", 1, 1),
        ("duplicate", "warning", 5, 2),
    ]
    assert [f.examples for f in check(NLUData(train), n_examples=0)] == [(), (), ()]


# one message ----------------------------------------------------------------------------------------------------------


def test_blank_text() -> None:
    data = NLUData((*CLEAN, Message(" \t", "i")), test=(Message("", "i"),))
    assert told(data, "blank text") == ["' \\t' (train)", "'' (test)"]


def test_broken_spans() -> None:
    overlap = Message("to New York", "i", (Entity(3, 6, "a"), Entity(5, 11, "b"), Entity(4, 5, "c")))
    outside = Message("Rome  now", "i", (Entity(0, 12, "a"), Entity(4, 6, "b"), Entity(2, 1, "c")))
    assert told(NLUData((*CLEAN, overlap, outside)), "broken span") == [
        "'e' (c, 4:5) in 'to New York'",
        "'w York' (b, 5:11) in 'to New York'",
        "'Rome  now' (a, 0:12) in 'Rome  now'",
        "'' (c, 2:1) in 'Rome  now'",
        "'  ' (b, 4:6) in 'Rome  now'",
    ]


@pytest.mark.parametrize(
    ("text", "start", "end", "cuts"),
    [
        ("at 7pm", 3, 4, True),
        ("at 7pm", 3, 6, False),
        ("at 7 pm", 3, 4, False),
        ("unhappy", 2, 7, True),
        ("Berlin's", 0, 6, False),
        ("a_b", 0, 1, False),  # taggers split at every punctuation mark
        ("cafe\u0301s", 0, 4, True),  # within a letter and its accent
        ("हिन्दी", 0, 1, True),
        ("東京都", 0, 2, False),  # ideographs are words
        ("東京へ", 0, 2, False),
        ("すし", 0, 1, True),
        ("7 東", 0, 1, False),
    ],
)
def test_part_of_a_word(text: str, start: int, end: int, cuts: bool) -> None:
    message = Message(text, "i", (Entity(start, end, "e"),))
    expected = [f"{text[start:end]!r} (e, {start}:{end}) in {text!r}"] if cuts else []
    assert [e.encode().decode() for e in told(NLUData((*CLEAN, message)), "part of a word")] == expected


@pytest.mark.parametrize(
    ("span", "ragged"),
    [
        *(
            (span, True)
            for span in (" Rome", "Rome ", "Rome,", "Rome.", "Rome?", '"Rome"', "(Rome", "(a] b", ".net", ")Rome")
        ),
        *(
            (span, False)
            for span in ("Rome", "D.C.", "(555) 123", "C++", "$5", "5%", "St. Louis", "Rome (Italy)", "#1")
        ),
        ("東京。", True),
    ],
)
def test_ragged_span(span: str, ragged: bool) -> None:
    data = NLUData((*CLEAN, spans(f"a {span} b", (span, "e"))))
    assert told(data, "ragged span") == ([f"{span!r} (e, 2:{2 + len(span)}) in {f'a {span} b'!r}"] if ragged else [])


def test_long_text() -> None:
    fine, long = "x" * LONG, "y" * (LONG + 1)
    [example] = told(NLUData((*CLEAN, Message(fine, "i"), Message(long, "i"))), "long text")
    assert example == f"'{'y' * 56}... (513 characters)"


# equal and similar texts ----------------------------------------------------------------------------------------------


def test_contradiction() -> None:
    data = NLUData((Message("OK", "yes"), Message("ok", None), Message("no", "no")), test=(Message("ok ", "thanks"),))
    assert told(data, "contradiction") == ["'OK': thanks, yes"]
    assert told(NLUData((Message("ok", "yes"), Message("ok"))), "contradiction") == []


def test_leak_and_duplicate() -> None:
    a, b = Message("a", "i"), Message("b", "i")
    data = NLUData((a, a, Message(" A ", "i"), b), validation=(a, Message("c", "i")), test=(Message("C", "i"), a, a))
    assert told(data, "leak") == ["'a' (train, validation)", "'a' (train, test)", "'c' (validation, test)"]
    assert told(data, "duplicate") == ["'a' (3 times in train)", "'a' (2 times in test)"]
    counts = {f.kind: f.count for f in check(data)}
    assert (counts["leak"], counts["duplicate"]) == (4, 3)


def test_other_entities() -> None:
    messages = (
        spans("to  Rome now", ("Rome", "city")),
        spans("to rome now", ("rome", "city")),  # the same, blanks and case aside
        spans("to rome now", ("rome", "place"), ("now", "time")),
        Message("to rome now", "i"),
    )
    assert told(NLUData(messages), "other entities") == [
        "'to  Rome now': 'rome' (city) / 'rome' (place), 'now' (time) / none"
    ]
    assert told(NLUData(messages[:2]), "other entities") == []


def test_near_duplicates() -> None:
    fly = [spans(f"please fly to {city}", (city, "city")) for city in ("Rome", "Ouagadougou")]
    walk = Message("please fly to Llanfairpwll", "walk", (Entity(14, 26, "city"),))
    data = NLUData((Message("Where is it", "i"), fly[0]), test=(Message("where is it?", "j"), fly[1], walk))
    assert told(data, "near leak") == ["'where is it?' (test) ~ 'Where is it' (train), J 1.00"]
    assert told(data, "near contradiction") == [
        "'Where is it' (i) ~ 'where is it?' (j), J 1.00",
        "'where is it?' (j) ~ 'Where is it' (i), J 1.00",
    ]
    assert told(data, "template leak") == [
        "'please fly to Ouagadougou' (test) ~ 'please fly to Rome' (train)",
        "'please fly to Llanfairpwll' (test) ~ 'please fly to Rome' (train)",
    ]
    assert told(data, "template contradiction")[0] == ("'please fly to Rome' (i) ~ 'please fly to Llanfairpwll' (walk)")


# labels ---------------------------------------------------------------------------------------------------------------


def test_rare_and_unknown_labels() -> None:
    train = [Message(f"x {i} y", "often", (Entity(2, 3, "many", role="r"),)) for i in range(FEW)]
    train += [Message(f"z {i} y", "seldom", (Entity(2, 3, "few"),)) for i in range(FEW - 1)]
    new = Message("q 1", "new", (Entity(2, 3, "many"),))
    data = NLUData(tuple(train), validation=(new,), test=(new, Message("q")))
    assert told(data, "few messages") == ["seldom: 4"]
    assert told(data, "few spans") == ["few: 4"]
    assert told(data, "unknown intent") == ["new: 2"]
    assert told(data, "unknown entity type") == ["many: 2"]  # training has it with the role r only


# written forms --------------------------------------------------------------------------------------------------------


def test_left_bare() -> None:
    marked = spans("off to New York", ("New York", "city"))
    bare = [Message(f"{word} new  york", "i") for word in ("is", "what", "why")]
    data = NLUData(
        (marked, *bare[:2], Message("newer york, new work", "i"), spans("New York new york", ("New York", "city")))
    )
    # bare in bare[0], bare[1] and beside the entity of the last message: 3 messages, annotated in 2
    assert told(data, "left bare") == ["'new york': annotated in 2, bare in 3 messages, as in 'is new  york'"]
    assert BARE == 3
    assert told(NLUData((marked, *bare[:2])), "left bare") == []  # bare in 2 only
    four = [spans(f"{word} New York", ("New York", "city")) for word in ("a", "b", "c", "d")]
    assert told(NLUData((*four, *bare)), "left bare") == []  # annotated more often than bare
    assert (
        told(NLUData((spans("so :)", (":)", "smile")), *(Message(f"{i} :)", "i") for i in range(5)))), "left bare")
        == []
    )


def test_several_types() -> None:
    data = (
        spans("two at two", ("two", "number"), ("two", "time")),
        spans("TWO  of us", ("TWO", "number")),
        Message("to Rome", "i", (Entity(3, 7, "city", role="to"),)),
        Message("from Rome", "i", (Entity(5, 9, "city", role="from"),)),  # roles are no types
    )
    assert told(NLUData(data), "several types") == ["'two': number 2, time 1"]


# faults of files ------------------------------------------------------------------------------------------------------

EMPTY = "empty text; allowed: at least one character"
OVERLAP = "entities 0:3 and 2:4 overlap; allowed: each character in one entity"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_every_row_at_fault_is_told(tmp_path: Path) -> None:
    rows = [
        '{"text": "hello", "intent": "greet"}',
        '{"text": " ", "intent": "greet"}',
        "",
        '{"text": "a\\u2028b", "intent": "greet", "entities": [{"start": 0, "end": 3, "entity": "x"}, '
        '{"start": 2, "end": 4, "entity": "y"}]}',
        "nonsense\r",
        '{"text": "hi", "intent": "greet"}',
    ]
    rows[3] = rows[3].replace("a\\u2028b", "abcd")
    path = write(tmp_path / "a.jsonl", "\n".join(rows))
    data, faults = read_despite_faults(path)
    assert data is not None
    assert [m.text for m in data.messages] == ["hello", "hi"]
    assert data.source == str(path)
    assert [str(f) for f in faults[:2]] == [f"{path}:2: {EMPTY}", f"{path}:4: {OVERLAP}"]
    assert str(faults[2]).startswith(f"{path}:5: not JSON")
    assert len(faults) == 3
    assert path.read_bytes().decode() == "\n".join(rows)
    [unreadable] = [f for f in check(data, faults=faults) if f.kind == "unreadable"]
    assert (unreadable.severity, unreadable.count, unreadable.examples) == ("error", 3, tuple(map(str, faults)))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("suffix", "comma"), [(".csv", ","), (".csv", ";"), (".tsv", "\t")])
def test_rows_of_tables_end_with_their_quotes(suffix: str, comma: str, end: str, tmp_path: Path) -> None:
    rows = ["", "text,intent", "hello,greet", '"one', ",two", 'three",,', '" ",greet', '"a', 'b",greet', "bye,greet"]
    path = write(tmp_path / f"a{suffix}", end.join(rows).replace(",", comma))
    data, faults = read_despite_faults(path)
    assert data is not None
    assert [m.text for m in data.messages] == ["hello", f"a{end}b", "bye"]
    assert [f.line for f in faults] == [4, 7]
    assert str(faults[0]).startswith(f"{path}:4: row with 3 fields, the header has 2; allowed: ")
    assert str(faults[1]) == f"{path}:7: {EMPTY}"


def test_a_quote_that_never_ends_costs_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,intent\nhello,greet\n"oops,greet\nbye,greet\n')
    data, faults = read_despite_faults(path)
    assert data is not None
    assert [m.text for m in data.messages] == ["hello", "bye"]
    assert [f.line for f in faults] == [3]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,intent\nhello,greet\ncaf\xe9,greet\nbye,greet\n")
    data, faults = read_despite_faults(path)
    assert data is not None
    assert [m.text for m in data.messages] == ["hello", "bye"]
    assert [str(f) for f in faults] == [
        f"{path}:3: byte 0xe9 is not UTF-8; allowed: text in UTF-8, with or without BOM; export it as UTF-8"
    ]


def test_faults_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,intent\na,x\n,x\nb,x\n")
    write(tmp_path / "test.csv", "text,intent\n,x\nc,x\n")
    write(tmp_path / ".git" / "huge", "")
    data, faults = read_despite_faults(tmp_path)
    assert data is not None
    assert ([m.text for m in data.train], [m.text for m in data.test]) == (["a", "b"], ["c"])
    assert sorted(str(f) for f in faults) == [
        f"{tmp_path / 'test.csv'}:2: {EMPTY}",
        f"{tmp_path / 'train.csv'}:3: {EMPTY}",
    ]


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("a.yml", "nlu:\n- intent: a\n  examples: |\n    - one\n    two\n    three\n", [5]),
        ("a.csv", "text,mood\na,x\n", [1]),  # without its header a table says nothing
        ("a.csv", "text,intent\n,x\n", [2, None]),  # no row is left
        ("a.csv", "", [1]),
        ("a.tsv", "\n \t\n\n", [1]),
        ("a.jsonl", '{"text": "a"}\n', [1, None]),
        ("a.jsonl", '{"say": "a"}\n' * (MOST + 1), [*range(1, MOST + 1)]),
    ],
)
def test_faults_that_end_the_reading(name: str, text: str, lines: list[int | None], tmp_path: Path) -> None:
    path = write(tmp_path / name, text)
    data, faults = read_despite_faults(path)
    assert data is None
    assert [f.line for f in faults] == lines
    assert all(str(f).startswith(f"{path}:") for f in faults)


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_empty_part_ends_the_reading(part: str, tmp_path: Path) -> None:
    for name in ("train", "test"):
        write(tmp_path / f"{name}.csv", "" if name == part else "text,intent\na,x\n")
    data, [fault] = read_despite_faults(tmp_path)
    assert data is None
    assert str(fault).startswith(f"{tmp_path / part}.csv:1: no header; allowed: a line such as text,intent")


def test_notes_are_on_what_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "id,text,intent\n1,a,x\n2,,x\n,,\n")
    write(tmp_path / "test.csv", "text,intent\nA,y\n")
    data, faults = read_despite_faults(tmp_path)
    assert data is not None
    # The row at fault is made blank, and is a line then, no row of blank fields.
    assert data.notes == ("train: columns that are not read: 'id'", "train: blank rows that are skipped: 1")
    assert [f.line for f in faults] == [3]


def test_a_fault_keeps_all_its_words(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,intent\na,x\n"b; c"d,x\n')
    _, [fault] = read_despite_faults(path)
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert str(fault) == str(caught.value)


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "train.csv", "text,intent\na,x\n")
    with pytest.raises(DataError) as caught:
        read_despite_faults("")
    assert str(caught.value) == f"the name of the data is empty; {FORMS}"


def test_what_is_no_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        read_despite_faults(tmp_path / "none.csv")
    with pytest.raises(DataError, match="a folder of no known form"):
        read_despite_faults(tmp_path)


def test_the_source_without_faults_is_what_load_data_reads() -> None:
    assert read_despite_faults("assistant") == (load_data("assistant", test=0, validation=0), [])


# real data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sara", {"contradiction": 26, "leak": 425, "unknown intent": 3}),
        ("sara-dedup", {"contradiction": 0, "leak": 0, "duplicate": 0}),
        ("banking77", {"contradiction": 0, "leak": 7, "duplicate": 5}),
        ("atis", {"leak": 69, "duplicate": 339, "unknown intent": 5, "unknown entity type": 4, "part of a word": 0}),
        ("snips", {"leak": 42, "several types": 128}),
    ],
)
def test_real_data(name: str, found: dict[str, int], real_data: Path) -> None:
    data, faults = read_despite_faults(real_data / name)
    assert data is not None
    counts = {f.kind: f.count for f in check(data, faults=faults)}
    assert {kind: counts.get(kind, 0) for kind in found} == found


def test_the_check_needs_no_workshop() -> None:
    code = "import sys; from flyweight.data.check import check; from flyweight.data.faults import read_despite_faults; "
    code += "print(sorted({'torch', 'scipy', 'sklearn', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
