"""The classic line: TF-IDF + linear SVM. If it is as good as the model, the user must see it.

    features = [word 1-2-grams | character 2-5-grams inside word borders], lower case, (1 + ln tf) * idf, unit length
    d        = x W + b                 one-vs-rest linear SVM, C = 1
    p        = softmax(d)              a ranking with confidences; not calibrated

Answers intents only. Needs scikit-learn, imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flyweight.answers import Answer, softmax
from flyweight.data.messages import Message
from flyweight.errors import DataError, MissingExtraError


class ClassicClassifier:
    """TF-IDF + linear SVM with the face of a model: `fit(messages).answers(texts)`. See the module."""

    def __init__(self, features: Any, svm: Any) -> None:
        """Wrap fitted scikit-learn objects; use `fit`."""
        self._features, self._svm = features, svm
        self.intents: tuple[str, ...] = tuple(str(name) for name in svm.classes_)

    @classmethod
    def fit(cls, messages: Sequence[Message], seed: int = 0) -> ClassicClassifier:
        """Fit on the messages that have an intent; the same messages and seed give the same classifier.

        Errors: MissingExtraError without scikit-learn; DataError for fewer than two intents.
        """
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
            from sklearn.pipeline import make_union
            from sklearn.svm import LinearSVC
        except ImportError as error:
            raise MissingExtraError("scikit-learn", "workshop", "the TF-IDF + SVM line") from error
        named = [(m.text, m.intent) for m in messages if m.intent is not None]
        n_intents = len({intent for _, intent in named})
        if n_intents < 2:
            raise DataError(f"{n_intents} different intents to learn", allowed="a classifier needs at least 2")
        texts, intents = [text for text, _ in named], [intent for _, intent in named]
        features = make_union(
            TfidfVectorizer(analyzer="word", ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
        )
        svm = LinearSVC(C=1.0, random_state=seed).fit(features.fit_transform(texts), intents)
        return cls(features, svm)

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, in order, without entities."""
        if not texts:
            return []
        decision = self._svm.decision_function(self._features.transform(list(texts)))  # (N, C), or (N,) for two
        if decision.ndim == 1:
            decision = np.stack([-decision, decision], axis=1)
        return [Answer(text, self.intents, p) for text, p in zip(texts, softmax(decision), strict=True)]
