"""Several teachers as one, and .fly files as teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flyweight as fw
from flyweight.data.messages import Entity, NLUData
from flyweight.errors import ArtifactError, ConfigError
from flyweight.model.nlu import NLUModel
from flyweight.training.logits import ABSENT, Ensemble, LogitsTeacher, ask_teacher, content_of, soft_labels_loss
from flyweight.training.loop import TrainingSettings
from flyweight.training.teacher import train

AB = ("a", "b")
CITY = ("O", "B-city", "I-city")


def saying(row: Any, intents: tuple[str, ...] = AB, tags: tuple[str, ...] = ()) -> LogitsTeacher:
    """A teacher that says the same of every text."""
    return LogitsTeacher(lambda texts: [row] * len(texts), intents, tags)


# ensembles ----------------------------------------------------------------------------------------------------------


def test_the_mean_of_log_probabilities() -> None:
    # softmax (0, log 3) = (1/4, 3/4); of (log 4 + 7, 7) = (4/5, 1/5), whatever is added to all logits
    both = Ensemble([saying([0.0, np.log(3)]), saying([np.log(4) + 7, 7.0])])
    [taught] = both.taught(["x"])
    assert taught.intent == pytest.approx([np.log(1 / 4 * 4 / 5) / 2, np.log(3 / 4 * 1 / 5) / 2])
    [answer] = both.answers(["x"])
    # sqrt(1/5) : sqrt(3/20) = 2 : sqrt 3
    assert answer.probabilities == pytest.approx([2 / (2 + 3**0.5), 3**0.5 / (2 + 3**0.5)])
    assert (answer.intent, both.labels.intents) == ("a", AB)
    assert both.taught([]) == []


def test_names_count_not_their_order() -> None:
    both = Ensemble([saying([5.0, 0.0]), saying([5.0, 0.0], ("b", "a"))])
    assert both.taught(["x"])[0].intent == pytest.approx([-2.5 - np.log1p(np.exp(-5))] * 2)


def test_tags_of_words_that_overlap() -> None:
    # "to new york": the second teacher cuts "new york" into one word, and says nothing of "to"
    first = saying(([0, 0], [(0, 2), (3, 6), (7, 11)], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]), AB, CITY)
    second = saying(([0, 0], [(3, 11)], [[0, 9, 0]]), AB, CITY)
    none = saying([0, 0])
    both = Ensemble([none, first, second])
    assert both.labels.entity_labels == ("city",)
    [taught] = both.taught(["to new york"])
    assert taught.tags is not None
    assert taught.words == [(0, 2), (3, 6), (7, 11)]
    even = -np.log(3)
    one = np.log(np.exp(9) + 2)  # of (0, 9, 0)
    assert taught.tags[0] == pytest.approx([even] * 3)  # nobody else saw it
    assert taught.tags[1] == pytest.approx([(even - one) / 2, (even + 9 - one) / 2, (even - one) / 2])
    # The later piece goes on: what B and I had is I's, and B cannot be meant.
    i = np.logaddexp(0, -9)
    last = np.array([-9, ABSENT, i]) - np.log(np.exp(-9) + np.exp(ABSENT) + np.exp(i))
    assert taught.tags[2] == pytest.approx((even + last) / 2, abs=1e-5)
    assert both.answers(["to new york"])[0].entities == (Entity(3, 11, "city"),)


def test_a_teacher_alone_is_itself(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    texts = [m.text for m in tiny_data.test]
    for alone, found in zip(tiny_model.answers(texts), Ensemble([tiny_model] * 2).answers(texts), strict=True):
        assert (found.intent, [e.key for e in found.entities]) == (alone.intent, [e.key for e in alone.entities])


def test_an_ensemble_teaches(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    both = Ensemble([tiny_model, saying([9.0, 0, 0, 0], tiny_model.labels.intents)])
    loss = soft_labels_loss(both, tiny_model, tiny_data.train[:3], progress=False)
    assert loss.intents.shape == (3, 4)
    assert (loss.intents.argmax(1) == 0).all()
    settings = TrainingSettings(epochs=1, batch_size=16)
    assert train(tiny_data, "small", settings, teacher=both, progress=False).labels.intents == tiny_model.labels.intents


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        ([], r"an ensemble of 0 teachers; allowed: 1 or more"),
        ([saying([0, 0]), saying([0, 0], ("a", "c"))], r"differ in 2 intents: 'b', 'c'; allowed: teachers of the same"),
        (
            [saying([0, 0]), saying(None, AB, CITY), saying(None, AB, ("O", "B-date"))],
            r"teachers of an ensemble differ in 2 entity labels: 'city', 'date'; allowed",
        ),
    ],
)
def test_teachers_that_do_not_fit(teachers: list[LogitsTeacher], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Ensemble(teachers)


# .fly ---------------------------------------------------------------------------------------------------------------


def test_a_file_says_what_the_runtime_says(bot: Path, tiny_data: NLUData) -> None:
    teacher, nlu = LogitsTeacher.from_fly(bot), fw.load(bot)
    texts = [m.text for m in tiny_data.test] + [""]
    assert teacher.labels.intents == nlu.labels.intents
    assert teacher.labels.entity_labels == ("city", "city#from", "city#to", "date")
    encoded = nlu.tokenizer.encode_batch(texts)
    for taught, e, (intent, tags) in zip(teacher.taught(texts), encoded, nlu.engine.logits(encoded), strict=True):
        assert tags is not None
        assert taught.tags is not None
        assert (taught.intent == intent).all()
        assert (taught.tags == tags).all()
        assert list(taught.words) == list(e.words)
    for ours, theirs in zip(teacher.answers(texts), nlu.answers(texts), strict=True):
        assert (ours.intent, [e.key for e in ours.entities]) == (theirs.intent, [e.key for e in theirs.entities])


def test_answers_of_a_file_are_kept_by_its_bytes(bot: Path, tmp_path: Path, tiny_model: NLUModel) -> None:
    (tmp_path / "copy.fly").write_bytes(bot.read_bytes())
    contents = {content_of(LogitsTeacher.from_fly(path)) for path in (bot, tmp_path / "copy.fly")}
    assert len(contents) == 1
    assert contents != {content_of(tiny_model)}
    teacher = LogitsTeacher.from_fly(bot)
    first = ask_teacher(teacher, ["hello"], False, tmp_path / "kept")
    teacher.function = lambda texts: pytest.fail("asked again")
    assert (ask_teacher(teacher, ["hello"], False, tmp_path / "kept")[0].intent == first[0].intent).all()


def test_files_that_cannot_teach(tmp_path: Path) -> None:
    (tmp_path / "odd.fly").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"odd.fly"):
        LogitsTeacher.from_fly(tmp_path / "odd.fly")
