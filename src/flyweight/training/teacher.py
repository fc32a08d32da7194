"""From data to a calibrated teacher: `train` fine-tunes a base, `import_teacher` takes an already fine-tuned folder."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flyweight.answers import Labels, softmax
from flyweight.data.load import load_data
from flyweight.data.messages import Message, NLUData, is_out_of_scope
from flyweight.data.seen import remember
from flyweight.data.source import listed
from flyweight.data.splits import check_share
from flyweight.errors import ConfigError, DataError, FlyweightWarning
from flyweight.measure.quality import fit_temperature, fit_threshold
from flyweight.model.checkpoints import load_encoder, resolve_base, resolve_folder
from flyweight.model.encoder import Encoder
from flyweight.model.finetuned import load_finetuned
from flyweight.model.nlu import Card, IntentHead, NLUModel, Pooling
from flyweight.model.small import MAX_POSITIONS, VOCABULARY, small_config, train_tokenizer
from flyweight.model.vocabularies import load_tokenizer
from flyweight.tokenizer import Tokenizer
from flyweight.training.logits import Teacher, soft_labels_loss
from flyweight.training.loop import TrainingSettings, fit, forget
from flyweight.training.losses import labels_loss

SMALL_RATE = 1e-3  # peak learning rate of `small`, trained from scratch
SMALL_EPOCHS = 60
BASE_RATE = 2e-4
MAX_TOKENS = 128
N_GOLDEN = 16
ANSWERS = "answers"  # what a teacher said, beside the checkpoint


def train(
    data: NLUData,
    base: str = "minilm",
    settings: TrainingSettings | None = None,
    *,
    pooling: Pooling = "mean",
    max_tokens: int = MAX_TOKENS,
    device: str = "auto",
    fallback_rate: float = 0.0,
    teacher: Teacher | None = None,
    out: str | Path | None = None,
    progress: bool = True,
) -> NLUModel:
    """Fine-tune a base (or train `small` from scratch) on data.train, choosing the epoch on data.validation.

    base: `minilm`, `small`, a local checkpoint folder or a Hub id. fallback_rate: see `calibrate`. teacher: learn its
    logits beside the labels (see soft_labels_loss); training messages without a label then teach too. out: folder for
    the finished model and, meanwhile, the checkpoint that an interrupted training resumes from. data.test is never
    looked at. Errors: DataError (no labels), CheckpointError (base), ConfigError (settings).
    """
    settings = settings or default_settings(base)
    _check_fallback(fallback_rate, data.validation, {m.intent for m in data.train} - {None})
    model = build(data, base, pooling=pooling, max_tokens=max_tokens, seed=settings.seed)
    model.labels = replace(model.labels, fallback_rate=fallback_rate)
    answers = None if out is None else Path(out) / ANSWERS
    loss = labels_loss if teacher is None else soft_labels_loss(teacher, model, data.train, progress, folder=answers)
    fit(model, data.train, data.validation, settings, loss=loss, device=device, folder=out, progress=progress)
    calibrate(model, data.validation)
    if out is not None:
        model.save(out)
        forget(out)
        shutil.rmtree(Path(out) / ANSWERS, ignore_errors=True)
    return model


def default_settings(base: str) -> TrainingSettings:
    """Fine-tuning: learning rate 2e-4, epochs by steps. `small`: 1e-3, 60 epochs."""
    if base == "small":
        return TrainingSettings(learning_rate=SMALL_RATE, epochs=SMALL_EPOCHS)
    return TrainingSettings(learning_rate=BASE_RATE)


def build(
    data: NLUData, base: str = "minilm", *, pooling: Pooling = "mean", max_tokens: int = MAX_TOKENS, seed: int = 0
) -> NLUModel:
    """An untrained model for the labels of data.train: encoder from the base, new heads."""
    intents = sorted({m.intent for m in data.train if m.intent is not None})
    if len(intents) < 2:
        raise DataError(f"{len(intents)} intent(s) in the training messages", allowed="at least 2 are needed")
    labels = Labels(
        tuple(intents),
        tuple(sorted({e.label for m in data.train for e in m.entities})),
        synonyms={k.lower(): v for k, v in data.synonyms.items()},
    )
    _check_max_tokens(max_tokens)
    torch.manual_seed(seed)
    if base == "small":
        source = train_tokenizer((m.text for m in data.train), VOCABULARY)
        tokenizer = Tokenizer(source, min(max_tokens, MAX_POSITIONS))
        encoder = Encoder(small_config(tokenizer.vocab_size))
    else:
        folder = resolve_base(base)
        encoder = load_encoder(folder)
        tokenizer = load_tokenizer(folder, min(max_tokens, encoder.config.max_positions))
    head: IntentHead = "similarity" if base == "small" else "linear"
    model = NLUModel(encoder.config, tokenizer, labels, pooling=pooling, intent_head=head)
    model.encoder.load_state_dict(encoder.state_dict())
    model.card = Card(
        base=_public_name(base),
        data_fingerprint=data.fingerprint(),
        split=dict(data.split),
        seen=remember(data.train + data.validation),
        golden=golden_messages(data.train),
    )
    return model


def _public_name(base: str) -> str:
    """A folder's name without its place, which is nobody's business; other bases as they are."""
    folder = Path(base).expanduser()
    return folder.resolve().name if folder.is_dir() else base


def golden_messages(messages: Sequence[Message], n: int = N_GOLDEN) -> list[str]:
    """n training texts spread over the lengths: shortest and longest included."""
    texts = sorted({m.text for m in messages}, key=lambda t: (len(t), t))
    return [texts[i] for i in sorted({round(x) for x in np.linspace(0, len(texts) - 1, min(n, len(texts)))})]


def calibrate(model: NLUModel, validation: Sequence[Message]) -> None:
    """Fit the temperature and, for a model with a fallback_rate, the threshold on validation messages (in place).

    The threshold turns away at most the share fallback_rate of the messages in scope. Without validation messages
    both stay as they are; so they do, with a warning, where fewer than half of the messages, or only one intent of
    them, are the model's: other messages say nothing about its confidences.
    """
    index = {name: i for i, name in enumerate(model.labels.intents)}
    named = [m for m in validation if m.intent is not None]
    known = [m for m in named if m.intent in index]
    if not named or not index:
        return
    if 2 * len(known) < len(named) or len({m.intent for m in known}) < 2:
        warnings.warn(
            f"temperature and threshold stay as they are: of {len(named)} validation messages {len(known)} have an "
            "intent of the model; half of them and two different intents are needed to fit",
            FlyweightWarning,
            stacklevel=2,
        )
        return
    logits = np.stack([intent for intent, _ in model.logits(model.tokenizer.encode_batch([m.text for m in known]))])
    gold = np.array([index[m.intent] for m in known if m.intent is not None])
    labels = replace(model.labels, temperature=round(fit_temperature(logits, gold), 4))
    inside = np.array([not is_out_of_scope(name) for name in labels.intents])
    if labels.fallback_rate and inside[gold].any():
        best = softmax(logits / labels.temperature)[:, inside].max(axis=1)
        labels = replace(labels, threshold=fit_threshold(best[inside[gold]], labels.fallback_rate))
    model.labels = labels


def _check_fallback(rate: float, validation: Sequence[Message], intents: Collection[str | None]) -> None:
    """ConfigError unless `rate` is a share, and there are messages to fit a threshold on where it is not 0."""
    check_share("fallback_rate", rate)
    if rate and not any(m.intent in intents and not is_out_of_scope(m.intent) for m in validation):
        raise ConfigError(
            f"fallback_rate is {rate}, but no validation message has an intent of the model to fit a threshold on; "
            "give data with a validation part, or leave fallback_rate out"
        )


def _check_max_tokens(n: int) -> None:
    if n < 4:
        raise ConfigError(f"max_tokens is {n}; at least 4")


def import_teacher(
    source: str | Path,
    data: NLUData | None = None,
    *,
    labels: Sequence[str] | None = None,
    max_tokens: int = MAX_TOKENS,
    fallback_rate: float = 0.0,
) -> NLUModel:
    """An already fine-tuned *ForSequenceClassification or *ForTokenClassification as a teacher, not retrained.

    source: a folder, or a Hub id.
    labels: class names in the order of the head's rows, where config.json does not name them. data: messages of these
    labels; the validation part fits temperature and threshold, train gives golden messages and synonyms. Without data
    the temperature stays 1 and golden messages are those of the embedded data set.
    Errors: CheckpointError (the folder), ConfigError (labels), DataError (data of other labels).
    """
    check_share("fallback_rate", fallback_rate)
    _check_max_tokens(max_tokens)
    model = load_finetuned(resolve_folder(str(source)), labels, max_tokens)
    if fallback_rate and not model.labels.intents:
        raise ConfigError(f"fallback_rate is {fallback_rate}; a model without intents has no threshold, leave it out")
    _check_fallback(fallback_rate, data.validation if data else (), model.labels.intents)
    model.labels = replace(model.labels, fallback_rate=fallback_rate)
    golden = (load_data("assistant") if data is None else data).train
    model.card = replace(model.card, base=_public_name(str(source)), golden=golden_messages(golden))
    if data is not None:
        named = set(data.intents) if model.labels.intents else set(data.entity_labels)
        known = set(model.labels.intents or model.labels.entity_labels)
        if not named & known:
            raise DataError(
                f"no label of the data ({listed(sorted(named))}) is one of the model's ({listed(sorted(known))})",
                allowed="give messages of the same labels, or the class names with --labels FILE",
            )
        model.labels = replace(model.labels, synonyms={k.lower(): v for k, v in data.synonyms.items()})
        model.card = replace(model.card, data_fingerprint=data.fingerprint(), split=dict(data.split))
        calibrate(model, data.validation)
    return model
