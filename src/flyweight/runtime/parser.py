"""A loaded .fly file that answers messages: text -> tokens -> logits -> intent, ranking, entities. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.answers import Answer, Labels
from flyweight.artifact import Artifact, read
from flyweight.errors import ArtifactError, CheckpointError, ParityError
from flyweight.runtime.reference import GoldenCheck, Reference, check_model, rms_difference
from flyweight.tokenizer import Tokenizer


class Parser:
    """`nlu = flyweight.load("bot.fly")`; `nlu.parse("book a table for two")`."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.labels = _labels(artifact)
        try:
            self.tokenizer = Tokenizer(artifact.tokenizer_json(), _max_tokens(artifact))
        except CheckpointError as error:
            raise ArtifactError(f"{artifact.path}: {error}") from error
        self.engine = Reference(artifact)
        if self.tokenizer.vocab_size > self.engine.words.shape[0]:
            raise ArtifactError(
                f"{artifact.path}: tokenizer of {self.tokenizer.vocab_size} ids for "
                f"{self.engine.words.shape[0]} word embeddings; they must belong together"
            )

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, in order."""
        encoded = self.tokenizer.encode_batch(list(texts))
        logits = self.engine.logits(encoded)
        found = []
        for text, e, (intent, tags) in zip(texts, encoded, logits, strict=True):
            if not (np.isfinite(intent).all() and (tags is None or np.isfinite(tags).all())):
                raise ParityError(f"{self.artifact.path}: logits of {text!r} are not finite; the model is damaged")
            found.append(self.labels.answer(text, e, intent, tags))
        return found

    def parse(self, text: str) -> dict[str, Any]:
        """Rasa's parse result: {"text", "intent": {"name", "confidence"}, "intent_ranking", "entities"}."""
        return self.answers([text])[0].to_dict()

    def parse_batch(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """`parse` of several messages."""
        return [answer.to_dict() for answer in self.answers(texts)]

    def check_golden(self) -> GoldenCheck:
        """Compute the golden messages and compare with the logits in the file."""
        golden = self.artifact.manifest["golden"]
        try:
            texts, tolerance = list(golden["texts"]), float(golden["tolerance"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(f"{self.artifact.path}: golden samples are broken ({error!r}); export again") from error
        if not all(isinstance(text, str) for text in texts):
            raise ArtifactError(f"{self.artifact.path}: golden texts must be text; export again")
        if not texts:
            return GoldenCheck(0.0, tolerance)
        encoded = self.tokenizer.encode_batch(texts)
        found = self.engine.logits(encoded)
        wanted_intent = self.artifact.array("golden.intent")
        pairs = [(np.stack([intent for intent, _ in found]), wanted_intent)]
        if self.engine.tags is not None:
            pairs.append((np.concatenate([t for _, t in found if t is not None]), self.artifact.array("golden.tags")))
        if any(a.shape != b.shape for a, b in pairs):
            raise ArtifactError(f"{self.artifact.path}: golden logits have other shapes than the model's; export again")
        return GoldenCheck(rms_difference([a for a, _ in pairs], [b for _, b in pairs]), tolerance)


def load(path: str | Path, *, check: bool = True) -> Parser:
    """Open a .fly file to answer messages. `check` runs the golden samples and refuses a file that misses them.

    Errors: ArtifactError (damaged or unknown file), ParityError (golden samples differ).
    """
    parser = Parser(read(path))
    if check:
        golden = parser.check_golden()
        if not golden.passed:
            raise ParityError(
                f"{path}: golden samples differ by {golden.difference:.3g} (RMS), allowed is {golden.tolerance:.3g}; "
                "the file or this installation is damaged: run flyweight verify, or export again"
            )
    return parser


def _labels(artifact: Artifact) -> Labels:
    try:
        fields = artifact.manifest["model"]["labels"]
        intents, entities = tuple(fields["intents"]), tuple(fields["entity_labels"])
        temperature, synonyms = float(fields["temperature"]), dict(fields["synonyms"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{artifact.path}: labels are broken ({error!r}); export the model again") from error
    names = [*intents, *entities, *synonyms, *synonyms.values()]
    lists = isinstance(fields["intents"], list) and isinstance(fields["entity_labels"], list)
    if not lists or not intents or not all(isinstance(name, str) for name in names) or not 1e-6 < temperature < 1e6:
        raise ArtifactError(
            f"{artifact.path}: labels must be lists of names, the temperature from 1e-6 to 1e6; export the model again"
        )
    return Labels(intents, entities, temperature, synonyms)


def _max_tokens(artifact: Artifact) -> int:
    n = artifact.manifest["model"].get("max_tokens")
    limit = check_model(artifact)["max_positions"]
    if not (type(n) is int and 3 <= n <= limit):
        raise ArtifactError(f"{artifact.path}: max_tokens is {n!r}; allowed: 3 to max_positions ({limit!r})")
    return n
