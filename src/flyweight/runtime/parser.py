"""A loaded .fly file that answers messages: text -> tokens -> logits -> intent, ranking, entities. No torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from flyweight import transport
from flyweight.answers import Answer, Labels, parse_result, with_fallback
from flyweight.artifact import NUMERICS_VERSION, Artifact, read
from flyweight.data.splits import check_share
from flyweight.errors import ArtifactError, CheckpointError, ConfigError, FlyweightWarning, ParityError
from flyweight.runtime import native
from flyweight.runtime.native import Native
from flyweight.runtime.parts import check_model
from flyweight.runtime.reference import GoldenCheck, Reference, rms_difference
from flyweight.tokenizer import Tokenizer

EngineName = Literal["auto", "native", "numpy"]
BUNDLED = "assistant"  # the model inside the package: made from the embedded data set by benchmarks/bundled.py
BUNDLED_FILE = Path(__file__).parent.parent / "data" / "assistant" / "assistant.fly"
T = TypeVar("T")
SLICE = 256  # messages of one native call: between calls Ctrl-C is heard, and memory stays small


class Parser:
    """`nlu = flyweight.load("bot.fly")`; `nlu.parse("book a table for two")`. Arguments: see `load`."""

    def __init__(
        self, artifact: Artifact, *, threads: int = 1, engine: EngineName = "auto", threshold: float | None = None
    ):
        self.artifact = artifact
        self.labels = _labels(artifact)
        if threshold is not None:
            check_share("threshold", threshold, "a confidence")
            self.labels = replace(self.labels, threshold=threshold)
        try:
            self.tokenizer = Tokenizer(artifact.tokenizer_json(), _max_tokens(artifact))
        except CheckpointError as error:
            raise ArtifactError(f"{artifact.path}: {error}") from error
        self.engine = pick_engine(artifact, threads, engine)
        if self.tokenizer.n_ids > self.engine.vocab_size:
            raise ArtifactError(
                f"{artifact.path}: tokenizer of {self.tokenizer.n_ids} ids for "
                f"{self.engine.vocab_size} word embeddings; they must belong together"
            )

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, in order."""
        found = []
        if (engine := self._native()) is not None:
            for text, (order, confidences, words, path) in self._decoded(texts, engine.answers):
                probabilities = np.empty(len(order))
                probabilities[order] = confidences
                entities = self.labels.entities(text, words, path)
                found.append(Answer(text, self.labels.intents, probabilities, entities, self.labels.threshold))
            return found
        encoded = self.tokenizer.encode_batch(list(texts))
        for text, e, (intent, tags) in zip(texts, encoded, self.engine.logits(encoded), strict=True):
            if not (np.isfinite(intent).all() and (tags is None or np.isfinite(tags).all())):
                raise self._damaged(text)
            found.append(self.labels.answer(text, e, intent, tags))
        return found

    def parse(self, text: str) -> dict[str, Any]:
        """Rasa's parse result: {"text", "intent": {"name", "confidence"}, "intent_ranking", "entities"}."""
        return self.parse_batch([text])[0]

    def parse_batch(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """`parse` of several messages."""
        if (engine := self._native()) is None:
            return [answer.to_dict() for answer in self.answers(texts)]
        labels, found = self.labels, []
        for text, (ranking, words, path) in self._decoded(texts, partial(engine.rankings, labels.intents)):
            if labels.threshold:
                ranking = with_fallback(ranking, labels.threshold)
            found.append(parse_result(text, ranking, labels.items(text, words, path) if path else []))
        return found

    def _native(self) -> Native | None:
        """The engine where it and the tokenizer are both native: text in, answer out in one call."""
        return self.engine if isinstance(self.engine, Native) and self.tokenizer.native is not None else None

    def _decoded(
        self, texts: Sequence[str], ask: Callable[[Any, Sequence[str], float], list[T | None]]
    ) -> Iterator[tuple[str, T]]:
        """Each message and what a native call says to it. Errors: ParityError."""
        for start in range(0, len(texts), SLICE):
            part = texts[start : start + SLICE]
            for text, one in zip(part, ask(self.tokenizer.native, part, self.labels.temperature), strict=True):
                if one is None:
                    raise self._damaged(text)
                yield text, one

    def _damaged(self, text: str) -> ParityError:
        return ParityError(f"{self.artifact.path}: logits of {text!r} are not finite; the model is damaged")

    def check_golden(self) -> GoldenCheck:
        """Compute the golden messages and compare with the logits in the file.

        Equal bits are required where the native engine made them and computes them, by the same numerics version.
        """
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
        if self.engine.has_tags:
            pairs.append((np.concatenate([t for _, t in found if t is not None]), self.artifact.array("golden.tags")))
        if any(a.shape != b.shape for a, b in pairs):
            raise ArtifactError(f"{self.artifact.path}: golden logits have other shapes than the model's; export again")
        same_numerics = self.artifact.manifest["numerics_version"] == NUMERICS_VERSION
        return GoldenCheck(
            rms_difference([a for a, _ in pairs], [b for _, b in pairs]),
            tolerance,
            equal=all(np.array_equal(a, b) for a, b in pairs),
            must_equal=same_numerics and self.engine.name == golden.get("made_by") == Native.name,
        )


def load(
    path: str | Path,
    *,
    check: bool = True,
    threads: int = 1,
    engine: EngineName = "auto",
    threshold: float | None = None,
) -> Parser:
    """Open a .fly file to answer messages. `check` runs the golden samples and refuses a file that misses them.

    path: a file, or "assistant" for the bundled model of the embedded data set, where no file has that name.
    threads: of the native engine. engine: "native" (C++), "numpy" (the reference), or "auto": native where it was
    built, else numpy with a warning. threshold: least confidence of an answer, in [0, 1), below it `nlu_fallback`;
    None takes the file's own.
    Errors: ArtifactError (damaged or unknown file), ParityError (golden samples differ), ConfigError (settings).
    """
    parser = Parser(read(find(path)), threads=threads, engine=engine, threshold=threshold)
    if check:
        golden = parser.check_golden()
        if not golden.passed:
            raise ParityError(
                f"{path}: {golden}; the file or this installation is damaged: run flyweight verify, or export again"
            )
    return parser


def find(path: str | Path) -> Path:
    """The file that is named: a path, or "assistant", the bundled model, where no file has that name.

    Of a transport form (*.fly.zst) it is the plain file, decoded where that has not been done.
    """
    if str(path) == BUNDLED and not Path(path).is_file():
        return BUNDLED_FILE
    return transport.unpacked(Path(path)) if str(path).endswith(transport.SUFFIX) else Path(path)


def pick_engine(artifact: Artifact, threads: int, engine: EngineName) -> Native | Reference:
    """The engine of that name with the model of a file. Errors: ArtifactError, ConfigError."""
    if engine not in get_args(EngineName):
        raise ConfigError(f"engine is {engine!r}; allowed: {', '.join(get_args(EngineName))}")
    if engine == "native" or (engine == "auto" and native.module() is not None):
        return Native(artifact, threads)
    if engine == "auto":
        _warn_once()
    return Reference(artifact)


_warned = False


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"{native.why_not()}: NumPy computes the answers, slower; {native.BUILD_HINT}",
            FlyweightWarning,
            stacklevel=5,
        )


def _labels(artifact: Artifact) -> Labels:
    try:
        fields = artifact.manifest["model"]["labels"]
        intents, entities = tuple(fields["intents"]), tuple(fields["entity_labels"])
        temperature, synonyms = float(fields["temperature"]), dict(fields["synonyms"])
        threshold, rate = float(fields.get("threshold", 0.0)), float(fields.get("fallback_rate", 0.0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ArtifactError(f"{artifact.path}: labels are broken ({error!r}); export the model again") from error
    names = [*intents, *entities, *synonyms, *synonyms.values()]
    lists = isinstance(fields["intents"], list) and isinstance(fields["entity_labels"], list)
    if not lists or not (intents or entities) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(f"{artifact.path}: labels must be lists of names, not both empty; export the model again")
    if not 1e-6 < temperature < 1e6 or not 0 <= threshold < 1 or not 0 <= rate < 1:
        raise ArtifactError(
            f"{artifact.path}: temperature {temperature}, threshold {threshold}, fallback_rate {rate}; allowed: the "
            "temperature from 1e-6 to 1e6, the others from 0 to below 1; export the model again"
        )
    return Labels(intents, entities, temperature, synonyms, threshold, rate)


def _max_tokens(artifact: Artifact) -> int:
    n = artifact.manifest["model"].get("max_tokens")
    limit = check_model(artifact)["max_positions"]
    if not (type(n) is int and 3 <= n <= limit):
        raise ArtifactError(f"{artifact.path}: max_tokens is {n!r}; allowed: 3 to max_positions ({limit!r})")
    return n
