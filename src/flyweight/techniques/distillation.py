"""Distillation: the model learns from a teacher, on training messages and as much unlabelled text as is wanted.

    minimise  (1 - soft) labels + soft (logits | mse | tags) + (hidden | embeddings | attention | relations | neurons)

The losses stand in training/distances.py, each with its formula; `hints` are a stage of their own, a quarter of the
epochs, before the others. The model keeps its shape: `student` before it makes a smaller one, a pruned model gets back
what it lost. Packed matrices become float. The epoch that agrees best with the teacher on validation messages is
kept; where labels alone teach (soft 0), that of the best F1.

Changes: weights only. Needs: messages, labelled or not. Gives up: nothing but the time of a training.
Sources: Hinton et al. 2015, arXiv:1503.02531; transfer text Tang et al. 2019, arXiv:1903.12136; of each loss with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from flyweight.data.messages import Message, NLUData
from flyweight.data.unlabelled import read_unlabelled
from flyweight.errors import ConfigError, DataError
from flyweight.model.nlu import NLUModel
from flyweight.techniques.room import Run, check_count, check_share, check_whole
from flyweight.training.distances import ANSWERS, LOSSES
from flyweight.training.distillation import distilled_loss, without_projections
from flyweight.training.logits import Ensemble, LogitsTeacher, Teacher, soft_labels_loss
from flyweight.training.loop import TrainingSettings, auto_epochs, fit
from flyweight.training.quantized import known, training_key
from flyweight.training.unlabelled import unlabelled_text

AUTO_STEPS = 4000  # aimed at where epochs are not given ...
AUTO_EPOCHS = (2, 60)  # ... within these bounds
HINTS_SHARE = 0.25  # of the epochs
RATE, HIGHEST_RATE = (
    0.0768,
    1e-3,
)  # of the learning rate where none is given: RATE / hidden, 2e-4 at 384 and 6e-4 at 128
ANSWERS_FOLDER = "answers"  # within the run's folder


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """What is learnt, from whom, and on what text.

    losses: one or more of logits, mse, tags, hidden, hints, embeddings, attention, relations, neurons, joined by +
    temperature: of logits, 0.1 to 100
    soft: share of the teacher's answers, 0 to 1 (no labels)
    transfer: messages of transfer text a training message, 0 to 100
    text: a file of messages without labels, one a line, or a folder of such .txt files; None: no such text
    epochs: passes over all messages, 0 (nothing is done) to 1000; None aims at 4000 steps within 2 to 60 epochs
    learning_rate: peak, in (0, 1); None: 0.0768 / hidden, at most 0.001
    teacher: first (the model before the first technique) | assistant (the model before the last student) | a path, or a
    list of paths, an ensemble: a model folder, a .fly file, a .jsonl file of logits
    """

    losses: str = "logits"
    temperature: float = 2.0
    soft: float = 0.8
    transfer: int = 10
    text: str | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    teacher: str | tuple[str, ...] = "first"
    ZERO: ClassVar[dict[str, Any] | None] = {"epochs": 0}
    FILES: ClassVar[tuple[str, ...]] = ("teacher", "text")

    def __post_init__(self) -> None:
        names = self.losses.split("+") if type(self.losses) is str else []
        if not names or len(set(names)) < len(names) or not set(names) <= set(LOSSES):
            allowed = f"one or more of {', '.join(LOSSES)}, joined by +, each once"
            raise ConfigError(f"distillation: losses is {self.losses!r}; allowed: {allowed}")
        if names == ["hints"]:
            raise ConfigError("distillation: losses is 'hints'; allowed: hints before another loss, as hints+logits")
        if type(self.temperature) not in (int, float) or not 0.1 <= self.temperature <= 100:
            raise ConfigError(f"distillation: temperature is {self.temperature!r}; allowed: a number from 0.1 to 100")
        check_share("distillation", "soft", self.soft)
        if self.soft == 1 and not set(names) & set(ANSWERS):
            raise ConfigError(
                f"distillation: soft is {self.soft!r}; allowed: below 1 (labels teach the heads), or one of the losses "
                f"{', '.join(ANSWERS)} beside {self.losses}"
            )
        check_whole("distillation", "transfer", self.transfer, 0, 100)
        if self.text is not None and (type(self.text) is not str or not self.text):
            raise ConfigError(f"distillation: text is {self.text!r}; allowed: none, or a file or folder")
        check_count("distillation", "epochs", self.epochs, 0, 1000)
        rate = self.learning_rate
        if rate is not None and (type(rate) not in (int, float) or not 0 < rate < 1):
            raise ConfigError(
                f"distillation: learning_rate is {rate!r}; allowed: none, or a number above 0 and below 1"
            )
        paths = list(self.teacher) if isinstance(self.teacher, list | tuple) else [self.teacher]
        if not paths or not all(type(path) is str and path for path in paths):
            raise ConfigError(
                f"distillation: teacher is {self.teacher!r}; allowed: first, assistant, a path, or a list of paths"
            )
        if isinstance(self.teacher, list):
            object.__setattr__(self, "teacher", tuple(self.teacher))

    def check(self) -> None:
        """Read teachers and text that are files or folders. Errors: as `apply`."""
        if self.teacher not in ("first", "assistant"):
            paths = (self.teacher,) if isinstance(self.teacher, str) else self.teacher
            inside = [name for name in self.losses.split("+") if name not in ANSWERS]
            if inside and not (len(paths) == 1 and Path(paths[0]).expanduser().is_dir()):
                raise ConfigError(
                    f"distillation: teacher is {self.teacher!r}, and the losses {'+'.join(inside)} compare what a "
                    f"model computes; allowed: one model folder, first or assistant; or the losses {', '.join(ANSWERS)}"
                )
            for path in paths:
                _read(Path(path).expanduser())
        if self.text is not None:
            read_unlabelled((self.text,), ())

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """The model trained. Interrupted, it goes on from run.folder.

        Errors: DataError without training messages, for a teacher of other labels, for text that cannot be read;
        ConfigError for a teacher that is not there, or cannot teach these losses.
        """
        if self.epochs == 0:
            return model.copy()
        model, teacher = model.copy().unpack(), self._teacher(run)
        data = self._data(model, run, teacher)
        stages = [name for name in self.losses.split("+") if name != "hints"]
        epochs = self.epochs or auto_epochs(len(data.train), TrainingSettings.batch_size, AUTO_STEPS, AUTO_EPOCHS)
        if "hints" in self.losses.split("+"):
            model = self._trained(
                model, run, teacher, replace(data, validation=()), ["hints"], math.ceil(HINTS_SHARE * epochs)
            )
        return self._trained(model, run, teacher, data, stages, epochs)

    def _trained(
        self, model: NLUModel, run: Run, teacher: Teacher, data: NLUData, names: Sequence[str], epochs: int
    ) -> NLUModel:
        """The model after one stage (in place)."""
        answers = None if run.folder is None else Path(run.folder) / ANSWERS_FOLDER

        def asked(messages: Sequence[Message]) -> Any:
            return soft_labels_loss(
                teacher,
                model,
                messages,
                run.progress,
                temperature=self.temperature,
                soft=1.0 if names == ["hints"] else self.soft,
                folder=answers,
            )

        validation = tuple(m for m in data.validation if m.intent is None or m.intent in model.labels.intents)
        score = asked(validation).agreement if validation and (self.soft or set(names) - set(ANSWERS)) else None
        loss = distilled_loss(
            names, teacher, model, data.train, asked(data.train), device=run.device, progress=run.progress
        )
        settings = TrainingSettings(
            epochs=epochs,
            learning_rate=self.learning_rate or min(HIGHEST_RATE, RATE / model.encoder.config.hidden),
            dropout=0.0,
            seed=run.seed,
        )
        kept = None
        if run.folder is not None:
            kept = Path(run.folder) / f"distilled-{training_key(model, data.train, validation, settings, loss)}"
        fit(
            model,
            data.train,
            validation,
            settings,
            loss=loss,
            score=score,
            device=run.device,
            folder=kept,
            progress=run.progress,
        )
        return without_projections(model)

    def _data(self, model: NLUModel, run: Run, teacher: Teacher) -> NLUData:
        """Training messages with text without labels beside them."""
        if not run.data.train:
            raise DataError("no training messages", allowed="distillation needs at least one, labelled or not")
        words_of = teacher if isinstance(teacher, NLUModel) else run.teacher
        paths = () if self.text is None else (self.text,)
        text = unlabelled_text(run.data, model, words_of, self.transfer, run.seed, paths)
        train = (*run.data.train, *text)
        return replace(run.data, train=known(model, train), validation=known(model, run.data.validation))

    def _teacher(self, run: Run) -> Teacher:
        """Who teaches."""
        if self.teacher == "first":
            return run.teacher
        if self.teacher == "assistant":
            if run.assistant is None:
                raise ConfigError(
                    "distillation: teacher is 'assistant'; allowed: after a student in the same recipe, whose "
                    "parent it is; else first, or a path"
                )
            return run.assistant
        paths = (self.teacher,) if isinstance(self.teacher, str) else self.teacher
        found = [_read(Path(path).expanduser()) for path in paths]
        return found[0] if len(found) == 1 else Ensemble(found)


def _read(path: Path) -> Teacher:
    """A teacher on disk. Errors: ConfigError, CheckpointError, DataError, ArtifactError."""
    if path.is_dir():
        return NLUModel.load(path)
    if path.suffix == ".fly" and path.is_file():
        return LogitsTeacher.from_fly(path)
    if path.suffix == ".jsonl" and path.is_file():
        return LogitsTeacher.from_file(path)
    raise ConfigError(
        f"distillation: teacher is '{path}'; allowed: first, assistant, or a model folder, .fly or .jsonl file that is "
        "there"
    )
