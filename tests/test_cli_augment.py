"""The command line: data augment, and teachers given to train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cli_cases import Call, Done, Place, cells_of, write_csv

from flyweight.cli import show
from flyweight.data import Message, NLUData, load_data, read_messages
from flyweight.data.write import bare, write_parts
from flyweight.model.nlu import NLUModel
from flyweight.training.transfer import KINDS


@pytest.fixture
def parts(tmp_path: Path, tiny_data: NLUData) -> Path:
    """Train, validation and test as files of a folder."""
    return write_parts(bare(tiny_data), tmp_path / "parts")


def test_new_messages_are_written_and_shown(
    parts: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(show, "PIPE_WIDTH", 300)
    done = call("data", "augment", parts, "--out", tmp_path / "new.jsonl", "--each", 2, "--examples", 1)
    assert done.code == 0, done.err
    made = read_messages(tmp_path / "new.jsonl")
    assert done.out.startswith(f"{tmp_path / 'new.jsonl'}: {len(made)} messages\n")
    assert len(made) > 100
    rows = cells_of(done.out)
    assert [row[0] for row in rows] == list(KINDS)
    assert sum(int(row[1]) for row in rows) == len(made)
    texts = {m.text for m in made}
    assert all((row[2] in texts) if row[1] != "0" else row[2] == "-" for row in rows)
    assert {row[0] for row in rows if row[1] == "0"} >= {"mask", "nearest", "case"}
    assert "note: mask, nearest and case need --model\n" in done.err
    assert not {m.folded for m in made} & {m.folded for m in load_data(parts).messages}


def test_a_model_gives_mask_and_near_words(parts: Path, tmp_path: Path, call: Call, place: Place, bot: Path) -> None:
    made = []
    for number, model in enumerate((bot, place.teacher)):
        out = tmp_path / f"{number}.jsonl"
        done = call(
            "data", "augment", parts, "--out", out, "--kind", "mask", "--kind", "nearest", "--model", model, "--json"
        )
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["messages"] == sum(kind["messages"] for kind in found["kinds"].values()) == len(read_messages(out))
        assert list(found["kinds"]) == ["mask", "nearest"]
        assert all("[MASK]" in text for text in found["kinds"]["mask"]["examples"])
        made.append(found["kinds"]["mask"]["messages"])
    assert min(made) > 20


def test_kinds_that_made_nothing_say_why(parts: Path, tmp_path: Path, call: Call, place: Place) -> None:
    def why(done: Done) -> list[str]:
        return [line for line in done.err.splitlines() if "messages also stand in training" not in line]

    command = ("data", "augment", parts, "--overwrite", "--out", tmp_path / "new.jsonl", "--kind", "splice")
    for kinds, note in ((["case"], "case needs"), (["nearest", "mask"], "mask and nearest need"), ([], "")):
        done = call(*command, *(word for kind in kinds for word in ("--kind", kind)))
        assert done.code == 0, done.err
        assert why(done) == ([f"note: {note} --model"] if note else [])
    # the tiny tokenizer folds capitals and has [MASK]
    done = call(*command, "--kind", "case", "--kind", "mask", "--model", place.teacher)
    assert done.code == 0, done.err
    assert why(done) == ["note: case makes nothing: to the model's tokenizer capitals are small letters"]


def test_a_teacher_that_is_not_there(place: Place, tmp_path: Path, call: Call) -> None:
    for name, what in (("nope", "is not there"), ("nope.fly", "is not there"), ("a.txt", "is none of these")):
        (tmp_path / "a.txt").write_text("x")
        done = call("train", place.csv, "--base", "small", "--out", tmp_path / "bot", "--teacher", tmp_path / name)
        wanted = f"--teacher is {tmp_path / name}, which {what}; allowed: a model folder, a .fly or .jsonl file\n"
        assert done.code == 1
        assert done.err.endswith(f"flyweight: {wanted}")
        assert not (tmp_path / "bot").exists()


def test_what_is_held_out_does_not_follow_the_seed(tmp_path: Path, call: Call, place: Place) -> None:
    """Each message has a word of its own: those of messages held out for testing are in nothing that is made."""
    messages = [Message(f"{verb} in town{i} today", intent=verb) for verb in ("rain", "eat") for i in range(100)]
    messages = [replace(m, text=m.text.replace("town", f"town{m.intent}")) for m in messages]
    source = write_csv(tmp_path / "a.csv", messages)
    held_out = {m.text.split()[2] for m in load_data(source).test}
    assert len(held_out) == 40
    for seed in (0, 1, 2):
        out = tmp_path / f"{seed}.jsonl"
        done = call("data", "augment", source, "--out", out, "--kind", "splice", "--each", 4, "--seed", seed)
        assert done.code == 0, done.err
        used = {word for m in read_messages(out) for word in m.text.split() if word.startswith("town")}
        assert len(used) > 100
        assert not used & held_out
    model = NLUModel.load(place.teacher)
    model.card.split = {"test": 0.5, "validation": 0.1, "seed": 3}
    model.save(tmp_path / "bot")
    held_out = {m.text.split()[2] for m in load_data(source, test=0.5, validation=0.1, seed=3).test}
    out = tmp_path / "model.jsonl"
    done = call("data", "augment", source, "--out", out, "--kind", "splice", "--model", tmp_path / "bot", "--each", 4)
    assert done.code == 0, done.err
    assert not {word for m in read_messages(out) for word in m.text.split()} & held_out


def test_the_same_seed_makes_the_same(parts: Path, tmp_path: Path, call: Call) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert call("data", "augment", parts, "--out", tmp_path / f"{name}.jsonl", "--seed", seed).code == 0
    a, b, c = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--kind swap",
            "transfer text of kind 'swap'; allowed: splice, same-intent, ngram, mask, alike, nearest, mix, ",
        ),
        ("--kind case", "no new message of the kinds case; mask, nearest and case need --model, slot entities"),
        ("--model NONE", "none.fly does not exist; name a .fly file"),
        ("--model LOGITS", "which has no words; allowed: a .fly file, a model folder, 'assistant'"),
        ("--out OLD", "already exists; choose another file, or add --overwrite\n"),
        ("--out NEW.csv", "a file of the form '.csv' cannot be written; allowed: .yml, .yaml, .jsonl"),
    ],
)
def test_errors_are_one_line(arguments: str, message: str, tmp_path: Path, tiny_data: NLUData, call: Call) -> None:
    csv = write_csv(tmp_path / "a.csv", tiny_data.messages)
    (tmp_path / "old.jsonl").write_text("mine")
    (tmp_path / "logits.jsonl").write_text('{"intents": ["a", "b"]}\n{"text": "x", "intent": [0, 1]}\n')
    names = {"NONE": "none.fly", "LOGITS": "logits.jsonl", "OLD": "old.jsonl", "NEW.csv": "new.csv"}
    words = [str(tmp_path / names[word]) if word in names else word for word in arguments.split()]
    done = call("data", "augment", csv, *([] if "--out" in words else ["--out", tmp_path / "new.jsonl"]), *words)
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert message in done.err
    assert not (tmp_path / "new.jsonl").exists()


def test_files_teach_alone_and_together(place: Place, tmp_path: Path, call: Call) -> None:
    """A .fly as the teacher; a .fly and a folder as one. What they said is removed with the checkpoint."""
    small = ["--base", "small", "--epochs", 1]
    for number, teachers in enumerate(([place.int8], [place.int8, place.teacher])):
        given = [word for path in teachers for word in ("--teacher", path)]
        done = call("train", place.csv, "--out", tmp_path / f"{number}", *small, *given, "--json")
        assert done.code == 0, done.err
        assert {p.name for p in (tmp_path / f"{number}").iterdir()} == {
            *("config.json", "model.safetensors", "tokenizer.json"),
        }
        assert NLUModel.load(tmp_path / f"{number}").labels.intents == NLUModel.load(place.teacher).labels.intents
