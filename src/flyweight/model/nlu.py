"""The joint NLU model in PyTorch: encoder, intent head, entity head; answers, saving, loading.

pooled = mean | max | cls | cls+f of the last hidden states    (B, D)    cls+f: f(pooler(cls)), f in tanh, relu, gelu
intent = pooled W^T + b   (linear), or inner products with label embeddings (similarity)
tags   = hidden W^T + b on each word's first sub-token         absent without entities
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flyweight.answers import Answer, Labels
from flyweight.artifact import check_integer_only, check_multiplied, whole_file
from flyweight.errors import CheckpointError, ConfigError, FlyweightError
from flyweight.forms import Form, finite, pack, unpack
from flyweight.model import integers
from flyweight.model.encoder import Encoder, EncoderConfig, Layer
from flyweight.model.linear import Linear, Matrix, computes, float_form, mask_of, set_computes, set_form
from flyweight.tokenizer import Encoded, Tokenizer

Pooling = Literal["mean", "max", "cls", "cls+tanh", "cls+relu", "cls+gelu"]
IntentHead = Literal["linear", "similarity"]
Part = Literal["embeddings", "encoder", "heads"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
POOLED: dict[str, Callable[[Tensor], Tensor]] = {"cls+tanh": torch.tanh, "cls+relu": F.relu, "cls+gelu": F.gelu}
EVAL_BATCH = 16  # sorted by length: larger batches are mostly padding


@dataclass
class Card:
    """What a model remembers of its making: base, data, steps, metrics, and golden messages for the export.

    survivors: which layers, heads and neurons a structurally pruned model has left, see flyweight.model.survivors.
    """

    base: str = ""
    data_fingerprint: str = ""
    split: dict[str, Any] = field(default_factory=dict)
    seen: str = ""  # memory of the training messages, see flyweight.data.seen
    steps: list[dict[str, Any]] = field(default_factory=list)  # one entry a training or technique, in order
    metrics: dict[str, Any] = field(default_factory=dict)
    golden: list[str] = field(default_factory=list)
    survivors: dict[str, Any] | None = None


class NLUModel(nn.Module):
    """Encoder + heads + tokenizer + labels: everything that answers a message."""

    def __init__(
        self,
        config: EncoderConfig,
        tokenizer: Tokenizer,
        labels: Labels,
        *,
        pooling: Pooling = "mean",
        intent_head: IntentHead = "linear",
        dropout: float = 0.1,
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling is '{pooling}'; allowed: {', '.join(POOLINGS)}")
        if tokenizer.vocab_size > config.vocab_size:
            raise CheckpointError(
                f"the tokenizer has {tokenizer.vocab_size} ids, the model {config.vocab_size} word embeddings; "
                "they must come from the same base"
            )
        self.tokenizer, self.labels = tokenizer, labels
        self.pooling: Pooling = pooling
        self.intent_head_kind: IntentHead = intent_head
        self.encoder = Encoder(config, dropout)
        self.pooler = Linear(config.hidden, config.hidden) if pooling in POOLED else None
        self.intent_head = Linear(config.hidden, len(labels.intents), bias=intent_head == "linear")
        self.tag_head = Linear(config.hidden, len(labels.tags)) if labels.entity_labels else None
        self.dropout = dropout
        self.card = Card()

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """ids (B, T) int64, mask (B, T) bool -> intent logits (B, C), hidden states (B, T, D)."""
        hidden = self.encoder(ids, mask)
        return self.intent_logits(hidden, mask), hidden

    def intent_logits(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (B, T, D), mask (B, T) -> (B, C)."""
        pooled = self.pool(hidden, mask)
        if self.encoder.config.integer_only:
            return integers.logits("heads.intent", self.intent_head, pooled)
        logits: Tensor = self.intent_head(F.dropout(pooled, self.dropout, self.training))
        return logits

    def tag_logits(self, words: Tensor) -> Tensor:
        """Hidden states of words (W, D) -> (W, n_tags). Needs an entity head."""
        assert self.tag_head is not None
        if self.encoder.config.integer_only:
            return integers.logits("heads.tags", self.tag_head, words)
        logits: Tensor = self.tag_head(words)
        return logits

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """(B, T, D) -> (B, D)."""
        if self.pooling == "mean" and self.encoder.config.integer_only:
            return integers.pool(hidden, mask)
        if self.pooling == "mean":
            weights = mask.to(hidden.dtype)
            return (hidden * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
        if self.pooling == "max":
            return hidden.masked_fill(~mask[:, :, None], -math.inf).amax(1)
        if self.pooler is None:
            return hidden[:, 0]
        return POOLED[self.pooling](self.pooler(hidden[:, 0]))

    @torch.no_grad()
    def logits(self, encoded: Sequence[Encoded]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Float32 logits of tokenized messages, in order: intent (C,), tags (W, n_tags) or None. No dropout."""
        was_training = self.training
        self.eval()
        device = self.intent_head.weight.device
        found: list[tuple[np.ndarray, np.ndarray | None]] = [(np.zeros(0), None)] * len(encoded)
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i].ids))
        for start in range(0, len(order), EVAL_BATCH):
            batch = order[start : start + EVAL_BATCH]
            ids, mask = pad([encoded[i].ids for i in batch])
            intent, hidden = self(ids.to(device), mask.to(device))
            for row, i in enumerate(batch):
                tags = None
                if self.tag_head is not None:
                    first = torch.from_numpy(encoded[i].first).to(device)
                    tags = self.tag_logits(hidden[row, first]).float().cpu().numpy()
                found[i] = (intent[row].float().cpu().numpy(), tags)
        self.train(was_training)
        return found

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, in order."""
        encoded = self.tokenizer.encode_batch(list(texts))
        rows = zip(texts, encoded, self.logits(encoded), strict=True)
        return [self.labels.answer(text, e, intent, tags) for text, e, (intent, tags) in rows]

    def parse(self, text: str) -> dict[str, Any]:
        """Rasa's parse result of one message."""
        return self.answers([text])[0].to_dict()

    def matrices(self) -> Iterator[tuple[str, Matrix, Part]]:
        """(name in the file, module, part) of every matrix that a technique may pack, in a fixed order."""
        yield "embeddings.words", self.encoder.words, "embeddings"
        yield "embeddings.positions", self.encoder.positions, "embeddings"
        if self.encoder.ngrams is not None:
            yield "embeddings.ngrams", self.encoder.ngrams, "embeddings"
        if self.encoder.projection is not None:
            yield "embeddings.projection", self.encoder.projection, "encoder"
        for i, layer in enumerate(self.encoder.layers):
            for name, module in layer.matrices():
                yield f"layers.{i}.{name}", module, "encoder"
        if self.pooler is not None:
            yield "heads.pooler", self.pooler, "heads"
        # Label embeddings of a similarity head are the founding experiment's output embedding layer.
        yield "heads.intent", self.intent_head, "heads" if self.intent_head_kind == "linear" else "embeddings"
        if self.tag_head is not None:
            yield "heads.tags", self.tag_head, "heads"

    def vectors(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the file, tensor) of everything that stays float32: biases, norms, relative position bias."""
        for name, module, _ in self.matrices():
            if module.bias is not None:
                yield f"{name}.bias", module.bias
        yield from _norm("embeddings.norm", self.encoder.norm)
        for i, layer in enumerate(self.encoder.layers):
            for name, norm in layer.norms():
                yield from _norm(f"layers.{i}.{name}", norm)
            if isinstance(layer, Layer) and layer.attention.relative_bias is not None:
                yield f"layers.{i}.attention.relative_bias", layer.attention.relative_bias

    def forms(self) -> Iterator[tuple[str, Form, dict[str, Any]]]:
        """(name, weight form, how it multiplies) of every matrix; float weights as Float32. Errors: FlyweightError."""
        for name, module, _ in self.matrices():
            form = module.form or float_form(module)
            if module.form is not None and not np.array_equal(form.dense(), module.weight.detach().cpu().numpy()):
                raise FlyweightError(f"{name} was trained after it was packed; apply the technique again")
            yield name, form, computes(module)

    def unpack(self) -> NLUModel:
        """Make every matrix an ordinary float matrix again (in place), masks stay: what training starts from."""
        self.encoder.config = replace(self.encoder.config, integer_only=False)
        for _, module, _ in self.matrices():
            module.form = None
            set_computes(module, {"activations": "float"})
        return self

    def copy(self) -> NLUModel:
        """An independent copy: techniques work on copies, never on their input."""
        return copy.deepcopy(self)

    def n_parameters(self) -> int:
        """Number of weights, biases and norms; of pruned matrices the weights that are left."""
        masks = [mask for _, module, _ in self.matrices() if (mask := mask_of(module)) is not None]
        return sum(p.numel() for p in self.parameters()) - sum(int((~mask).sum()) for mask in masks)

    def size_bytes(self) -> int:
        """Bytes of all weights in their present forms."""
        vectors = sum(4 * v.numel() for _, v in self.vectors())
        return vectors + sum((m.form or float_form(m)).size_bytes for _, m, _ in self.matrices())

    def describe(self) -> dict[str, Any]:
        """Architecture and labels as JSON: config.json of a folder, part of the .fly manifest."""
        return {
            "encoder": self.encoder.config.to_dict(),
            "pooling": self.pooling,
            "intent_head": self.intent_head_kind,
            "max_tokens": self.tokenizer.max_tokens,
            "labels": asdict(self.labels) | {k: list(getattr(self.labels, k)) for k in ("intents", "entity_labels")},
        }

    def save(self, folder: str | Path) -> Path:
        """Write config.json, model.safetensors and tokenizer.json; packed matrices stay packed."""
        from safetensors.numpy import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: np.ascontiguousarray(v.detach().float().cpu().numpy()) for name, v in self.vectors()}
        weights = {}
        for name, form, multiplies in self.forms():
            entry, parts = pack(form)
            weights[name] = entry | multiplies
            arrays |= {f"{name}.{part}": np.ascontiguousarray(a) for part, a in parts.items()}
        config = {"flyweight_model": 1, **self.describe(), "weights": weights, "card": asdict(self.card)}
        # config.json last: a folder that has one is complete.
        for name, content in (
            ("model.safetensors", save(arrays)),
            ("tokenizer.json", self.tokenizer.source.encode()),
            ("config.json", json.dumps(config, indent=1).encode()),
        ):
            with whole_file(folder / name) as file:
                file.write(content)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> NLUModel:
        """Read what `save` wrote. Errors: CheckpointError; ArtifactError for weights that do not fit their form."""
        from safetensors.numpy import load_file

        folder = Path(folder)
        config = _read_config(folder)
        try:
            labels = Labels(
                **(config["labels"] | {k: tuple(config["labels"][k]) for k in ("intents", "entity_labels")})
            )
            tokenizer = Tokenizer.from_file(folder / "tokenizer.json", config["max_tokens"])
            encoder = EncoderConfig.from_dict(config["encoder"])
            model = cls(encoder, tokenizer, labels, pooling=config["pooling"], intent_head=config["intent_head"])
            model.card = Card(**config["card"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / 'config.json'} has a broken or missing entry ({error!r})") from error
        try:
            arrays = load_file(str(folder / "model.safetensors"))
        except Exception as error:
            raise CheckpointError(f"{folder / 'model.safetensors'} cannot be read: {error}") from error
        try:
            with torch.no_grad():
                for name, tensor in model.vectors():
                    if not finite(arrays[name]):
                        raise CheckpointError(f"{folder}: {name} holds NaN or infinity; train the model again")
                    tensor.copy_(torch.from_numpy(arrays[name]))
            for name, module, _ in model.matrices():
                entry = config["weights"][name]
                parts = {k[len(name) + 1 :]: a for k, a in arrays.items() if k.startswith(f"{name}.")}
                form = unpack(entry, parts, name)
                check_multiplied(name, entry, f"{folder}: {name}")
                set_form(module, form)
                set_computes(module, entry)
            check_integer_only(config, config["weights"], str(folder))
        except (KeyError, RuntimeError) as error:
            raise CheckpointError(f"{folder}: weights do not fit config.json: {error}") from error
        return model.eval()


def pad(ids: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Ragged ids -> ids (B, T) int64 padded with 0, mask (B, T) bool."""
    length = max(len(row) for row in ids)
    padded = np.zeros((len(ids), length), np.int64)
    mask = np.zeros((len(ids), length), bool)
    for i, row in enumerate(ids):
        padded[i, : len(row)] = row
        mask[i, : len(row)] = True
    return torch.from_numpy(padded), torch.from_numpy(mask)


def _norm(name: str, norm: nn.LayerNorm) -> Iterator[tuple[str, Tensor]]:
    yield f"{name}.weight", norm.weight
    yield f"{name}.bias", norm.bias


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; a model folder is what 'flyweight train --out' writes")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict) or config.get("flyweight_model") != 1:
        raise CheckpointError(f"{path} is no Flyweight model (a base model is named with --base when training)")
    return config
