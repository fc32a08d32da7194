"""Fixtures shared by all tests."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from cli_cases import Call, Done, Place, write_csv

from flyweight.cli import show
from flyweight.cli.main import run
from flyweight.data.messages import Entity, Message, NLUData

if TYPE_CHECKING:
    from flyweight.model.nlu import NLUModel

# Without the native engine every test would begin with that news; tests/test_native_door.py looks at it.
NO_ENGINE = "ignore:the native engine"
os.environ.setdefault("PYTHONWARNINGS", NO_ENGINE)  # of the processes that tests start


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("filterwarnings", NO_ENGINE)


hypothesis.settings.register_profile("flyweight", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("flyweight")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets (README "Data sets"): FLYWEIGHT_DATA, or ../shared/data beside the project."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("FLYWEIGHT_DATA", beside))
    if not folder.is_dir():
        pytest.skip("the public data sets are absent: FLYWEIGHT_DATA names no folder and ../shared/data is none")
    return folder


CITIES = ["Berlin", "New York", "NYC", "Paris", "Rome", "San Francisco", "Oslo"]
DATES = ["today", "tomorrow", "on Monday", "next week", "on May 5"]
TEMPLATES = {
    "book_flight": [
        "book a flight from {city#from} to {city#to} {date}",
        "I want to fly from {city#from} to {city#to}",
        "get me a ticket to {city#to} {date}, please",
    ],
    "weather": ["what is the weather in {city} {date}?", "will it rain in {city}", "how warm will {city} be {date}"],
    "greet": ["hello", "hi there", "good morning", "hey", "hello bot", "good evening to you"],
    "thanks": ["thank you", "thanks a lot", "many thanks, bot", "thanks for the help", "cheers", "that was great"],
}


def fill(template: str, intent: str, number: int) -> Message:
    """A template with its slots filled; `number` chooses the values."""
    text, entities = "", []
    for piece in re.split(r"(\{[^}]+\})", template):
        if piece.startswith("{"):
            entity, _, role = piece[1:-1].partition("#")
            values = CITIES if entity == "city" else DATES
            value = values[(number + len(entities) * 3) % len(values)]
            entities.append(Entity(len(text), len(text) + len(value), entity, role=role or None))
            piece = value
        text += piece
    return Message(text, intent, tuple(entities))


@pytest.fixture(scope="session")
def tiny_data() -> NLUData:
    """60 training, 12 validation, 12 test messages: 4 intents; city (with roles from, to) and date; one synonym."""
    filled: dict[str, list[Message]] = {}
    for intent, templates in TEMPLATES.items():
        ends = [""] if "{" in templates[0] else ["", " !", " :)", " now"]
        filled[intent] = [fill(templates[i % len(templates)] + ends[i % len(ends)], intent, i) for i in range(21)]
    filled["greet"][15] = Message("cheers", "greet")  # "thanks" in training: keeps the fitted temperature off its limit
    splits = [tuple(m for row in filled.values() for m in row[a:b]) for a, b in ((0, 15), (15, 18), (18, 21))]
    return NLUData(*splits, synonyms={"NYC": "New York"}, source="tests")


@pytest.fixture(scope="session")
def tiny_model(tiny_data: NLUData) -> NLUModel:
    """`small` trained for some seconds on tiny_data. Shared: copy it before changing it."""
    from flyweight.training.loop import TrainingSettings
    from flyweight.training.teacher import train

    settings = TrainingSettings(epochs=8, batch_size=8, learning_rate=2e-3)
    return train(tiny_data, "small", settings, progress=False)


# the command line ---------------------------------------------------------------------------------------------------


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process."""

    def do(*arguments: object) -> Done:
        capsys.readouterr()
        code = run([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return do


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_data: NLUData) -> Place:
    """train -> compress -> compress, by the command line; its words are kept in `log`."""
    folder = tmp_path_factory.mktemp("cli")
    csv = write_csv(folder / "nlu.csv", tiny_data.messages)
    made = Place(csv, folder / "bot", folder / "int8.fly", folder / "codes.fly", [])

    def do(*arguments: object) -> None:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdout", out)
            patch.setattr("sys.stderr", err)
            patch.setattr(show, "PIPE_WIDTH", 200)
            code = run([str(a) for a in arguments])
        assert code == 0, err.getvalue()
        made.log.append(Done(code, out.getvalue(), err.getvalue()))

    do("train", csv, "--out", made.teacher, "--base", "small", "--epochs", 2, "--learning-rate", 0.003, "--json")
    do("compress", made.teacher, csv, "-t", "int8:granularity=matrix", "--out", made.int8, "--json")
    do(
        "compress",
        made.teacher,
        csv,
        "-t",
        "codebook:encoder=4,embeddings=4,heads=none",
        "-t",
        "int8",
        "--out",
        made.codes,
    )
    return made


@pytest.fixture(scope="session")
def bot(tiny_data: NLUData, tiny_model: NLUModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with entities, roles and synonyms."""
    from flyweight.export.fly import save
    from flyweight.recipe import compress
    from flyweight.techniques.int8 import Int8

    small = compress(tiny_model, tiny_data, [Int8()], measure=False, progress=False)
    return save(small, tmp_path_factory.mktemp("bot") / "bot.fly")
