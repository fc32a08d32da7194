"""flyweight sensitivity: the table, the files it leaves, and a second run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_cases import Call, write_csv
from random_models import quiet_run, random_model

from flyweight.analyse.sensitivity import Measured
from flyweight.data.messages import NLUData
from flyweight.model.nlu import NLUModel
from flyweight.techniques.int8 import Int8

PARTS = ["embeddings.words", "embeddings.positions", "layers.0.attention", "layers.0.ffn", "layers.1.attention"]
PARTS += ["layers.1.ffn", "heads.intent", "heads.tags", "all parts"]


@pytest.fixture(scope="module")
def model(tiny_model: NLUModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(tiny_model).save(tmp_path_factory.mktemp("sensitivity") / "bot")


@pytest.fixture(scope="module")
def csv(model: Path, tiny_data: NLUData) -> Path:
    return write_csv(model.parent / "nlu.csv", tiny_data.messages)


def test_the_table_and_the_files(call: Call, model: Path, csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    done = call("sensitivity", model, csv, "--bits", "8,1", "--out", out, "--messages", 9)
    assert done.code == 0, done.err
    result = json.loads((out / "sensitivity.json").read_text())
    assert (result["parts"], result["bits"], result["asked"]) == (PARTS, [8, 1], "validation")
    assert 0 < result["n_messages"] <= 11
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{model} on {result['n_messages']} validation messages of {csv}: macro-F1 0.")
    assert lines[1] == "in each cell: macro-F1 lost in %, answers changed; colour: KL, 0.0001 to 1 nats"  # no spans
    rows = {line.split("  ")[0]: line.split()[-4:] for line in lines[4:]}
    assert list(rows) == PARTS
    for cell in result["cells"]:
        f1, flips = rows[cell["part"]][:2] if cell["bits"] == 8 else rows[cell["part"]][2:]
        assert (float(f1), int(flips)) == (
            pytest.approx(cell["intent_macro_f1_loss_percent"], abs=0.0501),
            cell["n_flips"],
        )
    assert (out / "sensitivity.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_json_and_a_second_run(
    call: Call, model: Path, csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("sensitivity", model, csv, "--bits", "2", "--out", tmp_path, "--json")
    done = call(*arguments)
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads((tmp_path / "sensitivity.json").read_text())
    first = (tmp_path / "sensitivity.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Measured, "cell", None)  # nothing is measured again
        assert call(*arguments).out == done.out
    assert (tmp_path / "sensitivity.json").read_bytes() == first


def test_interrupted_it_says_that_it_goes_on(
    call: Call, model: Path, csv: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Measured.cell

    def stop(self: Measured, part: str, bits: int, forms: dict) -> object:
        if part == "layers.0.ffn":
            raise KeyboardInterrupt
        return measure(self, part, bits, forms)

    arguments = ("sensitivity", model, csv, "--bits", "4", "--out", tmp_path, "--json")
    with monkeypatch.context() as patch:
        patch.setattr(Measured, "cell", stop)
        done = call(*arguments)
    assert (done.code, done.out) == (130, "")
    assert "flyweight: interrupted; the same command goes on where it can" in done.err
    assert len(next(tmp_path.glob("cells-*.jsonl")).read_text().splitlines()) == 3
    assert call(*arguments).code == 0


def test_messages_of_other_intents(call: Call, model: Path, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("text,intent\n" + "".join(f"word {i},zzz\nother {i},yyy\n" for i in range(10)))
    done = call("sensitivity", model, tmp_path / "d.csv", "--out", tmp_path / "out")
    assert done.code == 1
    assert "no message has an intent that the model knows" in done.err
    assert not (tmp_path / "out").exists()


def test_a_model_folder_is_needed(call: Call, csv: Path, tmp_path: Path) -> None:
    (tmp_path / "bag.fly").write_bytes(b"FLY")
    for name, what in (("bag.fly", "is a .fly"), ("nope", "is not there")):
        done = call("sensitivity", tmp_path / name, csv, "--out", tmp_path / "out")
        wanted = f"{tmp_path / name} {what}; a model folder is needed: what 'flyweight train --out' wrote"
        assert (done.code, done.err) == (1, f"flyweight: {wanted}\n")
    assert not (tmp_path / "out").exists()


def test_a_packed_model_is_said_to_be_decoded(
    call: Call, model: Path, csv: Path, tiny_data: NLUData, tmp_path: Path
) -> None:
    parent = NLUModel.load(model)
    packed = Int8().apply(parent, quiet_run(tiny_data, parent)).save(tmp_path / "packed")
    arguments = ("--bits", "1", "--messages", 9, "--out", tmp_path / "out")
    done = call("sensitivity", packed, csv, *arguments)
    assert done.code == 0, done.err
    wanted = f"{packed} (packed; its weights decoded to floats) on "
    assert done.out.splitlines()[0].startswith(wanted)
    assert "at 1 bits" not in done.err
    assert json.loads((tmp_path / "out" / "sensitivity.json").read_text())["decoded"] is True
