"""load_data and read_messages: every form, whose parts are whose, and notes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flyweight.data import Message, load_data, read_messages
from flyweight.data.load import EMBEDDED, FORMS, evaluation_messages, recorded_split
from flyweight.data.seen import remember
from flyweight.errors import ConfigError, DataError


def csv(names: str, intent: str = "x") -> str:
    return "text,intent\n" + "".join(f"{name},{intent}\n" for name in names.split())


def yml(names: str, intent: str = "x") -> str:
    return f"nlu:\n- intent: {intent}\n  examples: |\n" + "".join(f"    - {name}\n" for name in names.split())


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def texts(messages: tuple[Message, ...]) -> str:
    return " ".join(m.text for m in messages)


TEN = "a b c d e f g h i j"
ROWS = [{"text": t, "intent": "x"} for t in TEN.split()]


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("a.csv", {"a.csv": csv(TEN)}),
        ("a.tsv", {"a.tsv": csv(TEN).replace(",", "\t")}),
        ("a.jsonl", {"a.jsonl": "".join(f'{{"text": "{t}", "intent": "x"}}\n' for t in TEN.split())}),
        ("a.json", {"a.json": json.dumps(ROWS)}),
        ("a.json", {"a.json": json.dumps({"train": [[t, "x"] for t in TEN.split()]})}),
        ("a.json", {"a.json": json.dumps({"rasa_nlu_data": {"common_examples": ROWS}})}),
        ("a.conll", {"a.conll": "".join(f"# intent: x\n{t} O\n\n" for t in TEN.split())}),
        ("a.yml", {"a.yml": yml(TEN)}),
        ("a.md", {"a.md": "## intent:x\n- " + TEN.replace(" ", "\n- ")}),
        ("bot", {"bot/nlu.md": "## intent:x\n- a\n- b\n", "bot/README.md": "# Bot\n", "bot/x.yml": yml(TEN[4:])}),
        (
            "bot",
            {"bot/config.yml": "pipeline: []\n", "bot/deep/a.yml": yml("a b c d"), "bot/x.yml": yml("e f g h i j")},
        ),
        ("bot", {"bot/data/a.yml": yml(TEN), "bot/test/stories.yml": "stories: []\n", "bot/test_drive.md": ""}),
        ("s", {"s/seq.in": TEN.replace(" ", "\n"), "s/seq.out": "O\n" * 10, "s/label": "x\n" * 10}),
        ("d", {"d/train.csv": csv(TEN), "d/categories.json": "[]", "d/LICENSE": "", "d/more.csv": "junk"}),
        ("d", {"d/train/seq.in": TEN.replace(" ", "\n"), "d/train/seq.out": "O\n" * 10, "d/train/label": "x\n" * 10}),
    ],
)
def test_one_part_is_split(tmp_path: Path, name: str, files: dict[str, str]) -> None:
    path = tree(tmp_path, files) / name
    assert texts(read_messages(path)) == TEN
    data = load_data(str(path))
    # 10 messages of one intent: floor(0.2 * 10 + 1/2) = 2, then floor(0.1 * 8 + 1/2) = 1
    assert (len(data.train), len(data.validation), len(data.test)) == (7, 1, 2)
    assert sorted(m.text for m in data.messages) == TEN.split()
    assert data.source == str(path)
    assert data.notes == ()
    assert load_data(path, test=0, validation=0).train == read_messages(path)
    assert load_data(path, seed=0).test == data.test
    assert any(load_data(path, seed=seed).test != data.test for seed in range(1, 6))


@pytest.mark.parametrize("valid", ["valid", "validation", "val", "dev", "DEV"])
def test_own_parts_are_used_as_they_are(tmp_path: Path, valid: str) -> None:
    tree(tmp_path, {"train.csv": csv(TEN), f"{valid}.csv": csv("k l"), "test.tsv": csv("m n o").replace(",", "\t")})
    data = load_data(tmp_path, test=0.5, validation=0.5)
    assert (texts(data.train), texts(data.validation), texts(data.test)) == (TEN, "k l", "m n o")
    assert texts(read_messages(tmp_path)) == f"{TEN} k l m n o"


def test_validation_is_held_out_of_train_and_test_stays(tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, {"train.csv": csv(TEN), "test.csv": csv("k l m")}), validation=0.2)
    assert (len(data.train), len(data.validation), texts(data.test)) == (8, 2, "k l m")
    assert sorted(m.text for m in data.train + data.validation) == TEN.split()


def test_test_is_held_out_of_train_and_own_validation_stays(tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, {"train.csv": csv(TEN), "dev.csv": csv("k l m")}))
    assert (len(data.train), texts(data.validation), len(data.test)) == (8, "k l m", 2)


def test_rasa_folder_with_own_test(tmp_path: Path) -> None:
    synonym = "- synonym: one\n  examples: |\n    - {}\n"
    tree(
        tmp_path,
        {
            "nlu/a.yml": yml("a b c") + synonym.format("a1"),
            "nlu/test_drive.yml": yml("d e", "test_drive"),
            "extra.yml": yml("f") + "- lookup: l\n  examples: |\n    - z\n",
            "test_nlu.yml": yml("k l") + synonym.format("k1"),
            "domain.yml": "intents: [x]\n",
        },
    )
    data = load_data(tmp_path, validation=0)
    assert (texts(data.train), texts(data.test)) == ("f a b c d e", "k l")
    # What the test part says beside its messages is not training's to know.
    assert (data.synonyms, data.lookups) == ({"a1": "one"}, {"l": ["z"]})


def test_rasa_train_file_takes_the_other_files_along(tmp_path: Path) -> None:
    tree(tmp_path, {"train.yml": yml("a b"), "chitchat.yml": yml("c"), "test.yml": yml("d")})
    data = load_data(tmp_path, validation=0)
    assert (texts(data.train), texts(data.test)) == ("a b c", "d")


def test_rasa_part_folders(tmp_path: Path) -> None:
    tree(tmp_path, {"train/a.yml": yml("a"), "train/b.yml": yml("b"), "test/c.yml": yml("c")})
    data = load_data(tmp_path, validation=0)
    assert (texts(data.train), texts(data.test)) == ("a b", "c")


def test_notes_on_leaks_and_strange_intents(tmp_path: Path) -> None:
    strange = "text,intent\nA ,x\nb,x\nnew,y\nnewer,z\n"
    tree(tmp_path, {"train.csv": csv("a b c"), "valid.csv": csv("C"), "test.csv": strange})
    assert load_data(tmp_path).notes == (
        "1 of the 1 validation messages also stand in training: scores on them show memory, not understanding",
        "2 of the 4 test messages also stand in training: scores on them show memory, not understanding",
        "2 of the 4 test messages have an intent that training lacks: 'y', 'z'",
    )


def test_notes_on_what_test_shares_with_validation(tmp_path: Path) -> None:
    tree(tmp_path, {"train.csv": csv("a b"), "dev.csv": csv("k l m"), "test.csv": csv("K n L")})
    assert load_data(tmp_path).notes == (
        "2 of the 3 test messages also stand in validation: what is chosen on it is chosen on them",
    )


def test_notes_name_the_parts_that_they_are_said_of(tmp_path: Path) -> None:
    with_id = "id,text,intent\n1,{},x\n,,\n"
    tree(tmp_path, {"train.csv": with_id.format("a"), "dev.csv": csv("b"), "test.csv": with_id.format("c")})
    assert load_data(tmp_path).notes == (
        "train, test: columns that are not read: 'id'",
        "train, test: blank rows that are skipped: 1",
    )


@pytest.mark.parametrize("own", ["dev", "test"])
def test_what_stands_in_another_part_is_not_held_out(own: str, tmp_path: Path) -> None:
    tree(tmp_path, {"train.csv": csv(TEN), f"{own}.csv": csv("A B C D E F G k")})
    data = load_data(tmp_path, test=0.2, validation=0.2)
    brought, held_out = (data.validation, data.test) if own == "dev" else (data.test, data.validation)
    assert texts(brought) == "A B C D E F G k"
    # floor(0.2 * 10 + 1/2) = 2 of the three texts h, i, j
    assert len(held_out) == 2
    assert {m.text for m in held_out} < {"h", "i", "j"}
    assert sorted(m.text for m in data.train + held_out) == TEN.split()
    assert len(load_data(tmp_path, test=0.9, validation=0.9).train) == 7


def test_nothing_is_held_out_where_all_stand_in_another_part(tmp_path: Path) -> None:
    data = load_data(tree(tmp_path, {"train.csv": csv(TEN), "dev.csv": csv(TEN)}), test=0.5)
    assert (texts(data.train), data.test) == (TEN, ())


def test_notes_on_entities_that_training_lacks(tmp_path: Path) -> None:
    row = '{{"text": "to {}", "intent": "x", "entities": [{{"start": 3, "end": 4, "entity": "city", "role": "{}"}}]}}\n'
    parts = {"train": [("a", "to")], "dev": [("b", "to"), ("c", "via")], "test": [("d", "from"), ("e", "")]}
    tree(tmp_path, {f"{part}.jsonl": "".join(row.format(*r) for r in rows) for part, rows in parts.items()})
    assert load_data(tmp_path).notes == (
        "1 of the 2 validation messages have an entity that training lacks: 'city#via'",
        "2 of the 2 test messages have an entity that training lacks: 'city', 'city#from'",
    )


def test_values_of_entities_are_synonyms_in_every_form(tmp_path: Path) -> None:
    entity = '{{"start": 3, "end": 6, "entity": "city", "value": "{1}"}}'
    row = '{{"text": "to {0}", "intent": "x", "entities": [' + entity + "]}}\n"
    rows = [("NYC", "New York"), ("Ulm", "Ulm"), ("ulm", "Ulm"), ("Nyc", "New York City")]
    wanted = {"nyc": "New York City", "ulm": "Ulm"}  # of two values the later one
    tree(
        tmp_path,
        {
            "a.jsonl": "".join(row.format(*r) for r in rows),
            "a.yml": "nlu:\n- intent: x\n  examples: |\n" + "".join(f"    - to [{w}](city:{v})\n" for w, v in rows),
        },
    )
    for name in ("a.jsonl", "a.yml"):
        assert load_data(tmp_path / name).synonyms == wanted
    tree(tmp_path, {"parts/train.jsonl": row.format(*rows[0]), "parts/test.jsonl": row.format("Rio", "Rio de Janeiro")})
    assert load_data(tmp_path / "parts").synonyms == {"nyc": "New York"}


def test_columns_reach_the_reader(tmp_path: Path) -> None:
    path = tree(tmp_path, {"a.csv": "phrase,goal\nhi,greet\n"}) / "a.csv"
    assert read_messages(path, text_column="phrase", intent_column="goal") == (Message("hi", "greet"),)
    assert load_data(path, text_column="phrase", intent_column="goal").train == (Message("hi", "greet"),)


def two_intents(names: str) -> str:
    return "text,intent\n" + "".join(f"{name},{'xy'[i % 2]}\n" for i, name in enumerate(names.split()))


def test_judged_on_what_the_model_has_not_seen(tmp_path: Path) -> None:
    path = tree(tmp_path, {"a.csv": two_intents(f"{TEN} k l m")}) / "a.csv"
    memory = remember(Message(text.upper()) for text in TEN.split())
    asked = evaluation_messages(path, seen=memory)
    assert sorted(m.text for m in asked.messages) == ["k", "l", "m"]
    assert sorted(m.text for m in asked.train) == TEN.split()
    assert asked.which == f"3 messages of {path} that the model has not seen (10 were trained on, left out)"
    strange = evaluation_messages(path, seen=remember([Message("other")]))
    assert (len(strange.messages), strange.train) == (13, ())
    assert strange.which == f"13 messages of {path} that the model has not seen"
    asked = evaluation_messages(path, "all", seen=memory)
    assert (len(asked.messages), asked.train) == (13, ())
    assert asked.which == f"all 13 messages of {path}; 10 of them were trained on"
    with pytest.raises(DataError) as caught:
        evaluation_messages(path, seen=remember(read_messages(path)))
    assert str(caught.value) == (
        f"{path}: the model was trained on all 13 messages; "
        "allowed: other messages, or another part: train, validation, test or all"
    )


def test_a_rival_needs_two_intents(tmp_path: Path) -> None:
    path = tree(tmp_path, {"a.csv": two_intents(TEN)}) / "a.csv"
    assert evaluation_messages(path, seen=remember([Message("a"), Message("c")])).train == ()
    assert len(evaluation_messages(path, seen=remember([Message("a"), Message("b")])).train) == 2


def test_one_message_more_does_not_let_training_messages_in(tmp_path: Path) -> None:
    names = [f"m{i}" for i in range(40)]
    trained = load_data(tree(tmp_path, {"a.csv": two_intents(" ".join(names))}) / "a.csv")
    memory = remember(trained.train + trained.validation)
    path = tree(tmp_path, {"b.csv": two_intents(" ".join(["new", *names]))}) / "b.csv"
    asked = evaluation_messages(path, seen=memory, split_settings=trained.split)
    assert sorted(m.text for m in asked.messages) == sorted(["new", *(m.text for m in trained.test)])


def test_an_own_test_part_is_used_as_it_is(tmp_path: Path) -> None:
    tree(tmp_path, {"train.csv": two_intents(TEN), "test.csv": two_intents("A b k")})
    asked = evaluation_messages(tmp_path, seen=remember([Message("a"), Message("b")]))
    assert texts(asked.messages) == "A b k"
    assert asked.which == f"3 test messages, the source's own part of {tmp_path}; 2 of them were trained on"
    assert sorted(m.text for m in asked.train) == TEN.split()
    asked = evaluation_messages(tmp_path, seen=remember([Message("c")]))
    assert asked.which == f"3 test messages, the source's own part of {tmp_path}"


def test_without_a_memory_the_held_out_part_counts(tmp_path: Path) -> None:
    path = tree(tmp_path, {"a.csv": two_intents(TEN)}) / "a.csv"
    asked = evaluation_messages(path, split_settings={"test": 0.4, "seed": 3})
    data = load_data(path, test=0.4, seed=3)
    assert (asked.messages, asked.train) == (data.test, data.train + data.validation)
    assert asked.which == f"4 test messages, held out of {path}"
    with pytest.raises(DataError) as caught:
        evaluation_messages(path, "test", split_settings={"test": 0})
    assert str(caught.value) == f"{path}: no test messages; choose another part: train, validation, test or all"


@pytest.mark.parametrize(
    ("name", "files", "error"),
    [
        ("none.csv", {}, f"no such file or folder; {FORMS}"),
        ("line\nbreak\x1bü.csv", {}, f"no such file or folder; {FORMS}"),
        ("x" * 5_000, {}, f"no such file or folder; {FORMS}"),
        ("a.docx", {"a.docx": ""}, f"a file of the unknown form '.docx'; {FORMS}"),
        ("d", {"d/LICENSE": "", "d/nlu.md": ""}, f"a folder of no known form, with 'LICENSE', 'nlu.md'; {FORMS}"),
        ("d", {"d/more.csv": csv("a")}, f"a folder of no known form, with 'more.csv'; {FORMS}"),
        (
            "d",
            {"d/test.csv": csv("a")},
            "no train part beside 'test'; allowed: a folder with train.csv, train.yml, train/ or the like",
        ),
        (
            "d",
            {"d/train.csv": csv("a"), "d/dev.csv": csv("a"), "d/val.csv": csv("a")},
            "'dev.csv', 'val.csv' for validation; allowed: one of them",
        ),
        ("d", {"d/seq.in": "a\n"}, "no file seq.out; allowed: a folder with seq.in, seq.out, label"),
        (
            "a.yml",
            {"a.yml": "nlu:\n- lookup: l\n  examples: |\n    - z\n"},
            "no messages; allowed: at least one intent with examples",
        ),
    ],
)
def test_unknown_forms(tmp_path: Path, name: str, files: dict[str, str], error: str) -> None:
    path = tree(tmp_path, files) / name
    with pytest.raises(DataError) as caught:
        load_data(path)
    place = str(path).replace("\n", r"\n").replace("\x1b", r"\x1b")
    assert str(caught.value) == f"{place}: {error}"


def test_a_device_is_no_data() -> None:
    with pytest.raises(DataError) as caught:
        load_data(os.devnull)
    assert str(caught.value) == f"{os.devnull}: neither a file nor a folder; {FORMS}"


def test_a_yaml_file_without_nlu_says_so(tmp_path: Path) -> None:
    path = tree(tmp_path, {"config.yml": "pipeline: []\n"}) / "config.yml"
    with pytest.raises(DataError) as caught:
        load_data(path)
    assert str(caught.value) == f"{path}:1: no nlu section; allowed: Rasa YAML with a list under the key `nlu:`"


@pytest.mark.parametrize("name", ["test", "validation"])
def test_shares_out_of_range(tmp_path: Path, name: str) -> None:
    shares = {name: 1.5}
    with pytest.raises(ConfigError) as caught:
        load_data(tmp_path, test=shares.get("test", 0.2), validation=shares.get("validation", 0.1))
    assert str(caught.value) == f"{name} is 1.5; allowed: a share of the messages, 0 <= {name} < 1"


def test_a_path_called_assistant_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree(tmp_path, {"assistant/nlu.yml": yml(TEN)}))
    assert texts(read_messages("assistant")) == TEN


def test_embedded_assistant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (EMBEDDED["assistant"] / "train.yml").is_file()
    monkeypatch.chdir(tmp_path)
    data = load_data("assistant")
    assert data.train
    assert data.validation
    assert data.test == read_messages(EMBEDDED["assistant"] / "test.yml")
    assert data.source == "assistant"


@pytest.mark.parametrize(
    ("name", "train_and_validation", "test", "n_intents"),
    [
        ("banking77", 10_003, 3_080, 77),
        ("atis", 4_978, 893, 26),
        ("snips", 13_784, 700, 7),
        ("sara-dedup", 3_855, 968, 68),
        ("sara-2019-dedup", 1_848, 461, 53),
        ("sara", 4_997, 508, 70),
        ("sara-2019", 3_783, 945, 53),
    ],
)
def test_real_counts(real_data: Path, name: str, train_and_validation: int, test: int, n_intents: int) -> None:
    data = load_data(real_data / name)
    assert (len(data.train) + len(data.validation), len(data.test)) == (train_and_validation, test)
    assert len(data.intents) == n_intents
    assert data.validation


def test_sara_leaks(real_data: Path) -> None:
    # Of the 485 messages whose intents training knows 412 stand in training; with the other 23 it is 425 of 508.
    assert load_data(real_data / "sara").notes == (
        "425 of the 508 test messages also stand in training: scores on them show memory, not understanding",
        "23 of the 508 test messages have an intent that training lacks: 'chitchat/ask_builder', "
        "'faq/differencecorenlu', 'faq/opensource'",
        "2 of the 508 test messages have an entity that training lacks: 'package_manager'",
    )


def test_a_recorded_split_is_taken_as_far_as_it_makes_sense() -> None:
    assert recorded_split({}) == {"test": 0.2, "validation": 0.1, "seed": 0}
    assert recorded_split({"test": 0.5, "seed": 3}) == {"test": 0.5, "validation": 0.1, "seed": 3}
    assert recorded_split({"test": "all", "seed": True, "train": 800}) == recorded_split({})
