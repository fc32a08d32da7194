"""What every room has, and what a room is given: the shape of a technique, and the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

from flyweight.data.messages import NLUData
from flyweight.errors import ConfigError
from flyweight.model.nlu import NLUModel
from flyweight.model.surgery import unpacked_copy
from flyweight.training.importance import MaskGradients, counts, mask_gradients
from flyweight.training.loop import TrainingSettings
from flyweight.training.losses import Loss, labels_loss
from flyweight.training.pruning import AUTO_STEPS as PRUNING_STEPS
from flyweight.training.pruning import Plan, Pruner, prunable, prune, steps_of
from flyweight.training.quantized import AUTO_STEPS, Distil, epochs_of, fit_taught, taught_data
from flyweight.training.unlabelled import unlabelled_text


@dataclass(frozen=True)
class Run:
    """What the runner hands to a technique.

    data: messages. Techniques learn from train and choose by validation; nothing is learnt from, measured on or chosen
    by test. Its texts are read for one reason: no transfer text (training/transfer.py) may equal one.
    teacher: the model before the first technique; loss: what fine-tuning minimises; seed; device; folder: for caches
    and checkpoints, removed by whoever gave it, once the result is saved; progress: show bars; said: what a technique
    adds to its receipt (in place); assistant: the model before the last `student` room, if there was one.
    """

    data: NLUData
    teacher: NLUModel
    loss: Loss = labels_loss
    seed: int = 0
    device: str = "auto"
    folder: str | None = None
    progress: bool = True
    said: dict[str, Any] = field(default_factory=dict)
    assistant: NLUModel | None = None


@runtime_checkable
class Technique(Protocol):
    """A frozen, keyword-only dataclass of at most 8 fields with `apply`; ZERO names settings that change nothing."""

    ZERO: ClassVar[dict[str, Any] | None]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init__(self, **settings: Any) -> None: ...

    def apply(self, model: NLUModel, run: Run) -> NLUModel:
        """A new model; the input is never changed."""
        ...


@runtime_checkable
class ReadsFiles(Protocol):
    """A technique with settings that name files or folders: FILES, and `check`, which reads what they name."""

    FILES: ClassVar[tuple[str, ...]]

    def check(self) -> None:
        """Errors where something cannot be read, as `apply` would find them hours later."""
        ...


class _Trained(Protocol):
    """Settings of a room that trains."""

    @property
    def epochs(self) -> int | None: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def distil(self) -> Distil: ...


class _Masking(_Trained, Protocol):
    """Settings of a room that prunes single weights."""

    @property
    def heads(self) -> bool: ...


class _InRounds(_Trained, Protocol):
    """Settings of a room that cuts in rounds."""

    @property
    def keep(self) -> float: ...
    @property
    def step(self) -> float: ...
    @property
    def between(self) -> int: ...
    @property
    def n_messages(self) -> int: ...


def retrained(
    model: NLUModel,
    run: Run,
    *,
    epochs: int | None,
    learning_rate: float,
    distil: Distil,
    transfer: int = 1,
    n_steps: int = AUTO_STEPS,
    while_training: Callable[[int], Callable[[Loss], Loss]] | None = None,
) -> NLUModel:
    """The model after so many passes over the run's messages (in place): 0 none, None about n_steps training steps.

    distil, while_training: as in fit_taught, the latter told how many steps the training has; a teacher's answers need
    no dropout. transfer: messages of transfer text beside each training message, that the teacher answers.
    """
    if epochs == 0:
        return model
    text = () if distil is None else unlabelled_text(run.data, model, run.teacher, transfer, run.seed)
    data = taught_data(run.data, distil, run.seed, run.loss, text)
    settings = TrainingSettings(
        epochs=epochs_of(epochs, data, n_steps),
        learning_rate=learning_rate,
        dropout=TrainingSettings.dropout if distil is None else 0.0,
        seed=run.seed,
    )
    return fit_taught(
        model,
        data,
        settings,
        teacher=run.teacher,
        distil=distil,
        loss=run.loss,
        while_training=None if while_training is None else while_training(steps_of(settings, data)),
        device=run.device,
        folder=run.folder,
        progress=run.progress,
    )


def pruned(model: NLUModel, run: Run, plan: Plan, room: _Masking) -> NLUModel:
    """A copy with masks, its matrices float; of packed ones what they decode to.

    plan: its n_steps are those of the training; room.heads: as in `prunable`; room.epochs: 0 prunes at once, None aims
    at 3000 steps. Errors: DataError where nothing can be learnt from.
    """
    model = model.copy()
    matrices = prunable(model.unpack(), room.heads) if plan.sparsity else []
    if not matrices:
        return model
    if room.epochs == 0:
        prune(matrices, plan)
        return model
    return retrained(
        model,
        run,
        epochs=room.epochs,
        learning_rate=room.learning_rate,
        distil=room.distil,
        n_steps=PRUNING_STEPS,
        while_training=lambda n_steps: Pruner(matrices, replace(plan, n_steps=n_steps)).while_training,
    )


def cut_in_rounds(
    model: NLUModel,
    run: Run,
    n_units: int,
    cut: Callable[[NLUModel, MaskGradients, int], NLUModel],
    room: _InRounds,
) -> NLUModel:
    """A smaller model: for each count of the n_units kept, score on training messages, cut, train.

    cut(model, gradients of its masks, count) -> a model; room.between: epochs after each round but the last.
    Errors: ConfigError for packed or masked matrices; DataError where no message can score, or teach.
    """
    kept = counts(n_units, room.keep, room.step)
    if not kept:
        return model.copy()
    model = unpacked_copy(model)
    for count in kept:
        gradients = mask_gradients(
            model,
            run.data.train,
            room.n_messages,
            loss=run.loss,
            seed=run.seed,
            device=run.device,
            progress=run.progress,
        )
        model = retrained(
            cut(model, gradients, count),
            run,
            epochs=room.epochs if count == kept[-1] else room.between,
            learning_rate=room.learning_rate,
            distil=room.distil,
        )
    return model


def technique(table: dict[str, type[Technique]], name: str, settings: dict[str, Any]) -> Technique:
    """Build a technique by name; unknown names and settings are refused by name. Errors: ConfigError."""
    if name not in table:
        raise ConfigError(f"technique '{name}' is unknown; allowed: {', '.join(table)}")
    allowed = [f.name for f in fields(table[name])]
    unknown = [key for key in settings if key not in allowed]
    if unknown:
        raise ConfigError(f"{name} has no setting '{unknown[0]}'; allowed: {', '.join(allowed)}")
    return table[name](**settings)


def check_choice(room: str, name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is not among the allowed ones."""
    allowed = list(allowed)
    if not any(value is a or (type(value) is type(a) and value == a) for a in allowed):
        shown = ", ".join("none" if a is None else str(a).lower() if isinstance(a, bool) else str(a) for a in allowed)
        raise ConfigError(f"{room}: {name} is {value!r}; allowed: {shown}")


def check_count(room: str, name: str, value: object, low: int, high: int) -> None:
    """Refuse anything but None or an integer in [low, high]."""
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise ConfigError(f"{room}: {name} is {value!r}; allowed: none, or a whole number from {low} to {high}")


def check_whole(room: str, name: str, value: object, low: int, high: int) -> None:
    """Refuse anything but an integer in [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{room}: {name} is {value!r}; allowed: a whole number from {low} to {high}")


def check_share(room: str, name: str, value: object, zero: bool = True) -> None:
    """Refuse anything but a number in [0, 1], or in (0, 1]."""
    if type(value) not in (int, float) or not 0 <= value <= 1 or (value == 0 and not zero):  # type: ignore[operator]
        allowed = "a number from 0 to 1" if zero else "a number above 0, at most 1"
        raise ConfigError(f"{room}: {name} is {value!r}; allowed: {allowed}")


def check_rounds(name: str, room: _InRounds) -> None:
    """Refuse settings that no pruning in rounds has."""
    check_share(name, "keep", room.keep)
    check_share(name, "step", room.step, zero=False)
    check_whole(name, "between", room.between, 0, 1000)
    check_training(name, room.epochs, room.learning_rate, fewest=0)
    check_choice(name, "distil", room.distil, (None, "logits", "hidden"))
    check_whole(name, "n_messages", room.n_messages, 1, 100_000)


def check_training(room: str, epochs: object, learning_rate: object, fewest: int = 1) -> None:
    """Refuse epochs and learning rates that no training has; fewest: 0 where a room may leave training out."""
    check_count(room, "epochs", epochs, fewest, 1000)
    if type(learning_rate) not in (int, float) or not 0 < learning_rate < 1:  # type: ignore[operator]
        raise ConfigError(f"{room}: learning_rate is {learning_rate!r}; allowed: a number above 0 and below 1")
