"""An already fine-tuned *ForSequenceClassification or *ForTokenClassification folder -> our model, heads included.

    *ForSequenceClassification    intents only: the classes; cls, pooler, tanh (ELECTRA: gelu; DistilBERT: relu), linear
    *ForTokenClassification       entities only: the classes are tags O, B-x, I-x, in any order

Class names are those of config.json's id2label, or given. A tag set without I-x (all entities are one word) gets an I-x
that lies 50 behind its B-x: never chosen, since B-x is legal wherever I-x is. One without B-x (plain I-x tags) gets a
B-x 2^-10 behind its I-x, which opens an entity where I-x may not and never splits one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flyweight.answers import Labels
from flyweight.data.source import shown
from flyweight.data.tags import tag_names
from flyweight.errors import CheckpointError, ConfigError
from flyweight.model.checkpoints import Take, encoder_from, family_of, read_json, read_tensors, taker
from flyweight.model.encoder import EncoderConfig
from flyweight.model.families import TAG_HEAD, Family
from flyweight.model.linear import Linear
from flyweight.model.nlu import NLUModel
from flyweight.model.vocabularies import load_tokenizer
from flyweight.tokenizer import Tokenizer

SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
# A tag that a model lacks: the side whose logit it takes, and how far its logit stays behind that side's.
# 2^-10 is less than any difference that matters; e^-50 is 2e-22 of the probability.
MADE_OF = {"B": ("I", 2.0**-10), "I": ("B", 50.0)}


def tag_sources(given: Sequence[str], wanted: Sequence[str]) -> list[tuple[int, float]]:
    """For each wanted tag the index of the given one that its logit is made of, and how far it lies behind that one's.

    A tag that is given is itself, 0 behind; B-x and I-x stand for each other where only one of them is given (MADE_OF).
    `given` holds O, and of every label of `wanted` B-x or I-x.
    """
    at = {name: i for i, name in enumerate(given)}
    made = [(tag[0], 0.0) if tag in at else MADE_OF[tag[0]] for tag in wanted]
    return [(at[side + tag[1:]], behind) for tag, (side, behind) in zip(wanted, made, strict=True)]


def load_finetuned(folder: Path, labels: Sequence[str] | None = None, max_tokens: int = 128) -> NLUModel:
    """The model of a fine-tuned folder; `labels` replaces the class names of config.json, in their order.

    Logits equal those of `transformers` within 1e-4 in float32. Errors: CheckpointError (what the folder holds),
    ConfigError (labels).
    """
    config = read_json(folder / "config.json")
    if "flyweight_model" in config:
        raise CheckpointError(f"{folder} is a Flyweight model already; use it as it is")
    family, where = family_of(config, str(folder)), str(folder)
    tensors = read_tensors(folder)
    kind = _kind(config, tensors, family, where)
    names = _class_names(config, labels, where)
    encoder = encoder_from(config, tensors, where=where)
    tokenizer = load_tokenizer(folder, min(max_tokens, encoder.config.max_positions))
    said_by = "config.json and the class names say"
    take = taker(tensors, replace(family, prefix=""), where, said_by)  # heads are named whole
    with torch.no_grad():
        if kind == SEQUENCE:
            head = family.classifier
            model = NLUModel(encoder.config, tokenizer, Labels(names), pooling=head.pooling)
            assert model.pooler is not None  # every family's classifier has one
            _copy(model.pooler, take, head.pooler)
            _copy(model.intent_head, take, head.out)
        else:
            theirs = Linear(encoder.config.hidden, len(names))
            _copy(theirs, take, TAG_HEAD)
            model = _tagger(encoder.config, tokenizer, names, theirs, where)
        model.encoder.load_state_dict(encoder.state_dict())
    model.card.steps.append({"imported": f"{config['model_type']} {kind}"})
    return model.eval()


def _kind(config: dict[str, Any], tensors: dict[str, Tensor], family: Family, where: str) -> str:
    """Which of the two heads the folder holds: what config.json calls it, else what its tensors look like."""
    listed = config.get("architectures")
    named = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
    for kind in (SEQUENCE, TOKEN):
        if any(name.endswith(kind) for name in named):
            return kind
    heads = {SEQUENCE: (family.classifier.pooler, family.classifier.out), TOKEN: (TAG_HEAD,)}
    for kind, parts in heads.items():
        if not named and all(f"{part}.weight" in tensors for part in parts):
            return kind
    found = f"a {' '.join(' '.join(named).split())}" if named else "an encoder without a head"
    raise CheckpointError(
        f"{where} holds {found}; allowed: a *{SEQUENCE} or *{TOKEN} (a base is fine-tuned with flyweight train --base)"
    )


def _class_names(config: dict[str, Any], labels: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Names of the classes in the order of the head's rows."""
    problem = config.get("problem_type")
    if problem not in (None, "single_label_classification"):
        raise CheckpointError(f"{where}: problem_type is {shown(problem)}; allowed: one label a message or word")
    if labels is not None:
        names = tuple(str(name) for name in labels)
        source = "labels"
    else:
        table = config.get("id2label")
        if not isinstance(table, dict) or not table or not all(str(i) in table for i in range(len(table))):
            raise CheckpointError(f"{where}: config.json has no id2label from 0 on; give the class names with --labels")
        if odd := [name for name in table.values() if not isinstance(name, str)]:
            raise CheckpointError(
                f"{where}: id2label names a class {shown(odd[0])}; allowed: texts (or name them with --labels FILE)"
            )
        names = tuple(table[str(i)] for i in range(len(table)))
        source = f"{where}: id2label"
        if len(names) > 1 and all(name == f"LABEL_{i}" for i, name in enumerate(names)):
            raise CheckpointError(
                f"{where}: config.json names the classes LABEL_0 to LABEL_{len(names) - 1}, which says nothing; "
                "give their names in this order with --labels FILE"
            )
    if len(names) < 2 or len(set(names)) != len(names) or not all(name.strip() for name in names):
        twice = sorted({name for name in names if names.count(name) > 1})
        found = f"{len(names)} class name(s)" + (f", {twice[0]!r} more than once" if twice else "")
        kind = CheckpointError if labels is None else ConfigError
        raise kind(f"{source}: {found}; allowed: at least 2 different names, none empty")
    return names


def _tagger(
    config: EncoderConfig, tokenizer: Tokenizer, names: tuple[str, ...], theirs: Linear, where: str
) -> NLUModel:
    """A model without intents whose tag head has the rows of the checkpoint's, `theirs`, in our order."""
    odd = [name for name in names if name != "O" and (name[:2] not in ("B-", "I-") or len(name) < 3 or "#" in name)]
    if odd or "O" not in names:
        found = f"the tag {odd[0]!r}" if odd else "no tag 'O'"
        raise CheckpointError(
            f"{where}: {found} among {len(names)}; allowed: O, B-name and I-name (name them with --labels FILE)"
        )
    labels = Labels((), tuple(sorted({name[2:] for name in names if name != "O"})))
    model = NLUModel(config, tokenizer, labels)
    assert model.tag_head is not None
    assert model.tag_head.bias is not None
    assert theirs.bias is not None
    for row, (source, behind) in enumerate(tag_sources(names, tag_names(labels.entity_labels))):
        model.tag_head.weight[row] = theirs.weight[source]
        model.tag_head.bias[row] = theirs.bias[source] - behind
    return model


def _copy(module: Linear, take: Take, name: str) -> None:
    assert module.bias is not None
    module.weight.copy_(take(f"{name}.weight", tuple(module.weight.shape)))
    module.bias.copy_(take(f"{name}.bias", tuple(module.bias.shape)))
