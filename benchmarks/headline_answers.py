"""Answers of slow models, kept on disk: a BERT-base in PyTorch takes minutes for a test file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from teachers import CACHE

from flyweight.answers import Answer
from flyweight.data.messages import Entity


def remembered(
    name: str,
    paths: Sequence[Path],
    versions: Mapping[str, str],
    texts: Sequence[str],
    asked: Callable[[], list[Answer]],
) -> list[Answer]:
    """The answers of the contender `name` to these texts.

    Asked for once for the same bytes of its files and of all files in its folders (`paths`: weights, configuration,
    labels, tokenizer, graph) and the same versions of libraries.
    """
    contents = [contents_of(path) for path in paths]
    made_of = json.dumps([name, contents, versions, list(texts)], sort_keys=True)
    key = hashlib.sha256(made_of.encode())
    path = CACHE / "headline" / "answers" / f"{key.hexdigest()[:16]}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        store(path, asked())
    return stored(path, texts)


def contents_of(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file in a folder by its name there."""
    if not path.is_dir():
        return {"": hashlib.sha256(path.read_bytes()).hexdigest()}
    files = (file for file in path.rglob("*") if file.is_file())
    return {file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def store(path: Path, answers: Sequence[Answer]) -> None:
    """Write answers, whole or not at all; texts are not kept, nor are synonyms' values."""
    spans = [[e.key for e in a.entities] for a in answers]
    part = path.with_name(f"part-{path.name}")
    np.savez(
        part,
        probabilities=np.stack([a.probabilities for a in answers]),
        intents=np.array(answers[0].intents),
        threshold=np.array(answers[0].threshold),
        entities=np.array(json.dumps(spans)),
    )
    part.replace(path)


def stored(path: Path, texts: Sequence[str]) -> list[Answer]:
    """What `store` wrote, as the answers to these texts."""
    with np.load(path) as found:
        intents, threshold = tuple(found["intents"].tolist()), float(found["threshold"])
        spans, probabilities = json.loads(str(found["entities"])), found["probabilities"]
    return [
        Answer(text, intents, p, tuple(Entity(*key) for key in keys), threshold)
        for text, p, keys in zip(texts, probabilities, spans, strict=True)
    ]
