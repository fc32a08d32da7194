"""The demonstration: teacher, two compressed files and the classic line on the embedded data, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flyweight.data.load import load_data
from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.export.fly import save
from flyweight.measure.classic import ClassicClassifier
from flyweight.model.nlu import NLUModel
from flyweight.recipe import compress
from flyweight.report.comparison import Contender, Row, comparison
from flyweight.runtime.parser import load
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8
from flyweight.techniques.room import Technique
from flyweight.training.loop import TrainingSettings
from flyweight.training.teacher import train

SENTENCES = (
    "wake me at seven tomorrow",
    "I need to get from Berlin to NYC on Friday",
    "it's way too bright in the lounge",
)
# 24 epochs: on this data the validation score is flat by then, and two slow cores stay below six minutes.
SETTINGS = TrainingSettings(epochs=24, learning_rate=2e-4)
N_LATENCY_CALLS = 100
RECIPES: dict[str, Sequence[Technique]] = {
    "assistant-int8.fly": [Int8()],
    "assistant-4bit.fly": [Codebook(encoder=16, embeddings=256, heads=256)],
}


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration prints."""

    rows: list[Row]
    answers: list[dict[str, Any]]
    title: str
    remark: str
    best: Path


def run_demo(out: Path, say: Callable[[str], None] = print) -> DemoResult:
    """Train (or find) the teacher in out/teacher, write out/*.fly, measure all on the test file.

    Errors: ConfigError when out/teacher holds another model; it is not overwritten.
    """
    data = load_data("assistant")
    n_train, n_validation, n_test = len(data.train), len(data.validation), len(data.test)
    say(f"data: {n_train} training, {n_validation} validation, {n_test} test messages, {len(data.intents)} intents")
    folder = out / "teacher"
    if (folder / "config.json").is_file():
        teacher = find_teacher(folder, data)
        say(f"teacher: found in {folder}")
    else:
        say("teacher: fine-tuning MiniLM (6 layers x 384)")
        teacher = train(data, "minilm", SETTINGS, out=folder)
    contenders = [Contender("teacher, fp32", "PyTorch", teacher, folder / "model.safetensors")]
    for name, recipe in RECIPES.items():
        say(f"compressing: {name}")
        path = save(compress(teacher, data, recipe, measure=False), out / name)
        nlu = load(path)
        contenders.append(Contender(name, nlu.engine.title, nlu, path))
    svm = ClassicClassifier.fit(data.train + data.validation)
    contenders.append(Contender("TF-IDF + SVM", "scikit-learn", svm, child=False))
    rows = comparison(contenders, data.test, n_latency_calls=N_LATENCY_CALLS)
    nlu = load(out / "assistant-4bit.fly")
    answers = [nlu.parse(text) for text in SENTENCES]
    title = f"{len(data.test)} test messages; one thread, batch 1, tokenizer included"
    remark = (
        f"The .fly files are run by the native {nlu.engine.title}; any other CPU gives the same logits to the last bit."
        if nlu.engine.name == "engine"
        else "The .fly files are run by the NumPy reference, which checks and does not hurry: size and answers are "
        "final, their milliseconds are not the engine's (flyweight doctor says why it is not here)."
    )
    return DemoResult(rows, answers, title, remark, out / "assistant-4bit.fly")


def find_teacher(folder: Path, data: NLUData) -> NLUModel:
    """The teacher of an earlier demonstration. Errors: ConfigError for a model of other data or another training."""
    teacher = NLUModel.load(folder)
    trainings = [step.get("training") for step in teacher.card.steps]
    if teacher.card.data_fingerprint != data.fingerprint() or trainings != [asdict(SETTINGS)]:
        raise ConfigError(
            f"{folder} holds a model that this demonstration did not train (other data or settings); "
            "choose another --out"
        )
    return teacher
