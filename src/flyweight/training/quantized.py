"""Training a model whose matrices have quantizers or are pruned, with a teacher or without: shared by the rooms."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from flyweight.data.messages import Message, NLUData
from flyweight.errors import DataError, FlyweightWarning
from flyweight.model.linear import mask_of
from flyweight.model.nlu import NLUModel
from flyweight.training.hidden import difference, hidden_states_loss, layers_taught
from flyweight.training.logits import soft_labels_loss
from flyweight.training.loop import TrainingSettings, auto_epochs, fit
from flyweight.training.losses import Loss, Score, labels_loss
from flyweight.training.quantizers import Quantizer, pack_quantized
from flyweight.training.transfer import splices

Distil = Literal["logits", "hidden"] | None
AUTO_STEPS = 1500  # aimed at where a room's epochs are not given: half a fine-tuning, from trained weights ...
AUTO_EPOCHS = (2, 40)  # ... within these bounds


def fit_taught(
    model: NLUModel,
    data: NLUData,
    settings: TrainingSettings,
    *,
    teacher: NLUModel,
    distil: Distil,
    loss: Loss,
    while_training: Callable[[Loss], Loss] | None = None,
    device: str = "auto",
    folder: str | None = None,
    progress: bool = True,
) -> NLUModel:
    """`fit` on data.train, the epoch chosen on data.validation, then the quantizers' forms packed (in place).

    distil: None trains with `loss` and chooses by F1; logits and hidden learn from `teacher` (see training/logits.py,
    hidden.py) and choose by agreement with it; where hidden states cannot be compared, as after hidden_pruning, logits
    are learnt, and a FlyweightWarning says so. while_training: wraps the loss that is minimised, such as with_mask and
    Pruner.while_training. folder: an interrupted training resumes from a folder within, and a finished one is not made
    again; it stays until the caller, who saves the result first, removes it.
    """
    train, validation = (known(model, part) for part in (data.train, data.validation))
    score: Score | None = None
    if distil is not None:
        validation = tuple(m for m in validation if m.intent is None or m.intent in model.labels.intents)
        score = soft_labels_loss(teacher, model, validation, progress).agreement if validation else None
    layers = layers_taught(model, teacher)
    if distil == "hidden" and (found := difference(teacher, model, train, layers)):
        text = f"{found}: their hidden states cannot be compared, so only its logits are learnt (distil=logits)"
        warnings.warn(text, FlyweightWarning, stacklevel=1)  # one place: said once, however many trainings follow
        distil = "logits"
    if distil == "hidden":
        loss = hidden_states_loss(teacher, model, train, layers=layers)
    elif distil == "logits":
        loss = soft_labels_loss(teacher, model, train, progress)
    if while_training is not None:
        loss = while_training(loss)
    kept = None if folder is None else Path(folder) / f"taught-{training_key(model, train, validation, settings, loss)}"
    fit(model, train, validation, settings, loss=loss, score=score, device=device, folder=kept, progress=progress)
    return pack_quantized(model)


def taught_data(
    data: NLUData, distil: Distil, seed: int, loss: Loss = labels_loss, text: Sequence[Message] | None = None
) -> NLUData:
    """What a room trains on: with a teacher, also text without labels; None: as many splices (transfer.py).

    No splice is a validation or test message. Learning labels alone leaves messages without any out: their words are
    not O, but unknown. Errors: DataError if nothing is left.
    """
    if not data.train:
        raise DataError("no training messages", allowed="training needs at least one, labelled or not")
    if distil is None:
        return _labelled(data) if loss is labels_loss else data  # another loss may number the messages itself
    if text is None:
        text = splices(data.train, len(data.train), seed, {m.text for m in (*data.validation, *data.test)})
    return replace(data, train=(*data.train, *text))


def epochs_of(epochs: int | None, data: NLUData, n_steps: int = AUTO_STEPS) -> int:
    """The epochs of a room: as given, or those that come nearest to n_steps."""
    return epochs or auto_epochs(len(data.train), TrainingSettings.batch_size, n_steps, AUTO_EPOCHS)


def _labelled(data: NLUData) -> NLUData:
    """Training and validation messages with labels.

    Where no message has an intent, the data are a tagger's: a message without entities says that all its words are O.
    """
    if not any(m.intent is not None or m.entities for m in data.train):
        raise DataError(
            f"none of the {len(data.train)} training messages has a label",
            allowed="without labels a model can only be taught by its float model (distil=logits or hidden)",
        )
    if all(m.intent is None for m in data.train):
        return data
    parts = (data.train, data.validation)
    train, validation = (tuple(m for m in part if m.intent is not None or m.entities) for part in parts)
    return replace(data, train=train, validation=validation)


def known(model: NLUModel, messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages; for a model without intents, theirs are left out."""
    if model.labels.intents:
        return tuple(messages)
    return tuple(replace(m, intent=None) for m in messages)


def training_key(
    model: NLUModel, train: Sequence[Message], validation: Sequence[Message], settings: TrainingSettings, loss: Loss
) -> str:
    """A name for the training of these weights with these quantizers, messages in order, settings and loss.

    It tells apart whatever `fit` does, which refuses the checkpoint of another training.
    """
    quantizers = [repr(m) for m in model.modules() if isinstance(m, Quantizer)]
    made_of = [settings, getattr(loss, "__name__", ""), quantizers, model.describe(), model.tokenizer.sha256]
    found = hashlib.sha256(repr([made_of, train, validation]).encode("utf-8", "surrogatepass"))
    for p in model.parameters():
        found.update(p.detach().cpu().numpy().tobytes())
    for _, module, _ in model.matrices():
        if (mask := mask_of(module)) is not None:
            found.update(mask.tobytes())
    return found.hexdigest()[:10]
