"""The text that a model learns from beside its training messages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flyweight.data.messages import Message, NLUData
from flyweight.errors import DataError
from flyweight.model.nlu import NLUModel
from flyweight.training.logits import LogitsTeacher
from flyweight.training.transfer import transfer_text
from flyweight.training.unlabelled import unlabelled_text, vectors_of


def silent(labels: tuple[str, ...]) -> LogitsTeacher:
    return LogitsTeacher(lambda texts: np.zeros((len(texts), len(labels))), labels)


def test_made_and_given_text_is_new(tiny_model: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    lines = [
        tiny_data.test[0].text,
        tiny_data.validation[0].text.upper(),
        tiny_data.train[0].text,
        "quite new",
        "Quite  new",
    ]
    (tmp_path / "more.txt").write_text("\n".join(lines))
    found = unlabelled_text(tiny_data, tiny_model, tiny_model, 3, 0, [tmp_path / "more.txt"])
    assert len(found) == 3 * len(tiny_data.train) + 1
    assert found[-1] == Message("quite new")
    assert not {m.folded for m in found} & {m.folded for m in tiny_data.messages}
    never = [m.text for m in (*tiny_data.validation, *tiny_data.test)]
    vectors = vectors_of(tiny_model, tiny_model)
    assert found[:-1] == transfer_text(tiny_data.train, 180, 0, never, vectors=vectors)


def test_given_text_alone(tiny_model: NLUModel, tiny_data: NLUData, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("quite new\n")
    assert unlabelled_text(tiny_data, tiny_model, tiny_model, 0, 0, [tmp_path]) == (Message("quite new"),)
    assert unlabelled_text(tiny_data, tiny_model, tiny_model, 0, 0) == ()
    (tmp_path / "more.txt").write_text(tiny_data.train[0].text)
    with pytest.raises(DataError, match=r"no message; give a file with a message a line that is not known already"):
        unlabelled_text(tiny_data, tiny_model, tiny_model, 0, 0, [tmp_path])


def test_a_teacher_of_logits_alone_has_no_near_words(tiny_model: NLUModel, tiny_data: NLUData) -> None:
    teacher = silent(tiny_model.labels.intents)
    assert vectors_of(tiny_model, teacher).words == []
    assert vectors_of(tiny_model, teacher).mask == "[MASK]"
    assert unlabelled_text(tiny_data, tiny_model, teacher, 1, 0, kinds=["nearest"]) == ()
    assert len(unlabelled_text(tiny_data, tiny_model, teacher, 1, 0, kinds=["mask"])) > 30
