"""`train`: from data and the name of a base to a trained, calibrated model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from flyweight.answers import Labels
from flyweight.data.messages import Message, NLUData
from flyweight.data.seen import remember
from flyweight.errors import ConfigError, DataError
from flyweight.measure.quality import fit_temperature
from flyweight.model.checkpoints import load_encoder, resolve_base
from flyweight.model.encoder import Encoder
from flyweight.model.nlu import Card, IntentHead, NLUModel, Pooling
from flyweight.model.small import MAX_POSITIONS, VOCABULARY, small_config, train_tokenizer
from flyweight.tokenizer import Tokenizer
from flyweight.training.loop import TrainingSettings, fit, forget

SMALL_RATE = 1e-3  # peak learning rate of `small`, trained from scratch
SMALL_EPOCHS = 60
BASE_RATE = 2e-4
MAX_TOKENS = 128
N_GOLDEN = 16


def train(
    data: NLUData,
    base: str = "minilm",
    settings: TrainingSettings | None = None,
    *,
    pooling: Pooling = "mean",
    max_tokens: int = MAX_TOKENS,
    device: str = "auto",
    out: str | Path | None = None,
    progress: bool = True,
) -> NLUModel:
    """Fine-tune a base (or train `small` from scratch) on data.train, choosing the epoch on data.validation.

    base: `minilm`, `small`, a local checkpoint folder or a Hub id. out: folder for the finished model and, meanwhile,
    the checkpoint that an interrupted training resumes from. data.test is never looked at.
    Errors: DataError (no labels), CheckpointError (base), ConfigError (settings).
    """
    settings = settings or default_settings(base)
    model = build(data, base, pooling=pooling, max_tokens=max_tokens, seed=settings.seed)
    fit(model, data.train, data.validation, settings, device=device, folder=out, progress=progress)
    calibrate(model, data.validation)
    if out is not None:
        model.save(out)
        forget(out)
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
    if max_tokens < 4:
        raise ConfigError(f"max_tokens is {max_tokens}; at least 4")
    torch.manual_seed(seed)
    if base == "small":
        source = train_tokenizer((m.text for m in data.train), VOCABULARY)
        tokenizer = Tokenizer(source, min(max_tokens, MAX_POSITIONS))
        encoder = Encoder(small_config(tokenizer.vocab_size))
    else:
        folder = resolve_base(base)
        encoder = load_encoder(folder)
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json", min(max_tokens, encoder.config.max_positions))
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
    """Fit the temperature on validation messages (in place); without any it stays 1."""
    index = {name: i for i, name in enumerate(model.labels.intents)}
    known = [m for m in validation if m.intent in index]
    if not known:
        return
    logits = np.stack([intent for intent, _ in model.logits(model.tokenizer.encode_batch([m.text for m in known]))])
    gold = np.array([index[m.intent] for m in known if m.intent is not None])
    model.labels = replace(model.labels, temperature=round(fit_temperature(logits, gold), 4))
