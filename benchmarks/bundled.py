"""Make the model inside the package, src/flyweight/data/assistant/assistant.fly (<= 1 MB), from the embedded data set.

    python benchmarks/bundled.py                   20 minutes and more on two cores

A MiniLM teacher is fine-tuned; a student of 2 layers x 128 learns its logits on the training messages and on variants
of them that only the teacher labels. Three things let so small a model know words that the training messages lack:

    vocabulary      the teacher's word pieces: all that the training messages use, single characters, and the most
                    frequent English ones (BERT's vocabulary is sorted by frequency)
    embeddings      start as the principal components of the teacher's: near words stay near
    variants        words exchanged for near ones (TinyBERT, arXiv:1909.10351), dropped, and messages cut and joined
                    (Tang et al. 2019, arXiv:1903.12136)

Layers then become int8 or 4-bit codes, embeddings codes of 4 to 6 bits: the best file of at most 1 MB on the validation
messages is taken. The test file gives the printed table alone (results/bundled.json).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import flyweight as fw
from flyweight.cli.show import comparison_table
from flyweight.data.messages import Message, NLUData
from flyweight.measure.classic import ClassicClassifier
from flyweight.measure.machine import machine
from flyweight.measure.quality import evaluate
from flyweight.model.encoder import EncoderConfig, LayerShape
from flyweight.model.nlu import NLUModel
from flyweight.report.comparison import Contender, Row, comparison
from flyweight.runtime.parser import BUNDLED_FILE
from flyweight.tokenizer import Tokenizer
from flyweight.training.logits import soft_labels_loss
from flyweight.training.loop import TrainingSettings, fit
from flyweight.training.teacher import calibrate, train

RESULTS = Path(__file__).parent / "results"
CACHE = Path("~/.cache/flyweight/bundled").expanduser()
TEACHER = TrainingSettings(epochs=24, learning_rate=2e-4)
STUDENT = TrainingSettings(epochs=12, learning_rate=1e-3, batch_size=64, dropout=0.05)
MAX_TOKENS = 64
MAX_BYTES = 1_000_000
LAYERS_4BIT = fw.Codebook(encoder=16, embeddings=None, heads=256)
N_NEAR = 8  # nearest words to choose from


def cut_vocabulary(source: str, used: set[int], size: int) -> tuple[str, np.ndarray]:
    """A tokenizer.json with `size` of the pieces, and the old id of each new one.

    Kept: special tokens, single characters, used pieces, then those with the smallest ids, the most frequent.
    """
    spec = json.loads(source)
    vocab: dict[str, int] = spec["model"]["vocab"]
    special = {token["content"] for token in spec["added_tokens"]}
    single = {i for piece, i in vocab.items() if re.fullmatch(r"(##)?[!-~]", piece)}
    kept = {vocab[name] for name in special} | single | used
    words = [i for piece, i in vocab.items() if re.fullmatch(r"(##)?[a-z]+", piece) and i not in kept]
    kept |= set(sorted(words)[: max(size - len(kept), 0)])
    old = np.array(sorted(kept))
    new = {int(i): at for at, i in enumerate(old)}
    spec["model"]["vocab"] = {piece: new[i] for piece, i in sorted(vocab.items(), key=lambda p: p[1]) if i in new}
    for token in spec["added_tokens"]:
        token["id"] = new[token["id"]]
    for token in spec["post_processor"]["special_tokens"].values():
        token["ids"] = [new[i] for i in token["ids"]]
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":")), old


def principal(rows: np.ndarray, n: int) -> np.ndarray:
    """The rows in their first n principal components, scaled to a standard deviation of 0.05: (V, D) -> (V, n)."""
    centred = rows - rows.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    found = centred @ axes[:, ::-1][:, :n]
    return found * (0.05 / found.std())


def student(teacher: NLUModel, texts: Sequence[str], n_vocab: int, layers: int, hidden: int) -> NLUModel:
    """An untrained student with the teacher's labels, a cut vocabulary and projected embeddings."""
    used = {int(i) for e in teacher.tokenizer.encode_batch(list(texts)) for i in e.ids}
    source, old = cut_vocabulary(teacher.tokenizer.source, used, n_vocab)
    torch.manual_seed(0)
    config = EncoderConfig(
        vocab_size=len(old),
        hidden=hidden,
        head_size=32,
        layers=(LayerShape(heads=hidden // 32, ffn=4 * hidden),) * layers,
        max_positions=MAX_TOKENS,
    )
    model = NLUModel(config, Tokenizer(source, MAX_TOKENS), teacher.labels)
    words = teacher.encoder.words.weight.detach().numpy()[old]
    with torch.no_grad():
        model.encoder.words.weight.copy_(torch.from_numpy(principal(words, hidden)))
    model.card = replace(teacher.card, base=f"{teacher.card.base}, distilled", steps=list(teacher.card.steps))
    return model


def neighbours(teacher: NLUModel, ids: dict[str, int]) -> dict[str, list[str]]:
    """For each word of `ids` (piece -> id in the teacher) those with the most similar embeddings there, by cosine."""
    words = [w for w in ids if re.fullmatch(r"[a-z]{2,}", w)]
    rows = teacher.encoder.words.weight.detach().numpy()[[ids[w] for w in words]]
    rows = rows - rows.mean(axis=0)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    near = np.argsort(-(rows @ rows.T), axis=1)[:, 1 : N_NEAR + 1]
    return {word: [words[j] for j in near[i]] for i, word in enumerate(words)}


def variants(messages: Sequence[Message], near: dict[str, list[str]], n: int, seed: int) -> Iterator[str]:
    """n texts made of the messages' words: exchanged (20%), dropped (8%), and one in four joined from two messages."""
    rng = np.random.default_rng(seed)
    words = [re.findall(r"\w+(?:'\w+)?|[^\w\s]", m.text) for m in messages]
    for _ in range(n):
        found = list(words[rng.integers(len(words))])
        if rng.random() < 0.25:
            other = words[rng.integers(len(words))]
            found = found[: rng.integers(len(found)) + 1] + other[rng.integers(len(other)) :]
        swap, drop = rng.random(len(found)) < rng.choice([0.0, 0.2, 0.4]), rng.random(len(found)) < 0.08
        made = [
            str(rng.choice(near[w.lower()])) if s and w.lower() in near else w for w, s in zip(found, swap, strict=True)
        ]
        yield " ".join(w for w, d in zip(made, drop, strict=True) if not d) or "hello"


def texts_to_teach(data: NLUData, teacher: NLUModel, model: NLUModel, per_message: int) -> list[Message]:
    """The training messages, and variants of them that are no message of the data set."""
    pieces, original = (json.loads(m.tokenizer.source)["model"]["vocab"] for m in (model, teacher))
    near = neighbours(teacher, {word: original[word] for word in pieces})
    made = set(variants(data.train, near, per_message * len(data.train), 0)) - {m.text for m in data.messages}
    return [*data.train, *(Message(text) for text in sorted(made))]


def smallest_loss(model: NLUModel, data: NLUData, out: Path) -> Path:
    """Write the file of at most MAX_BYTES that is best on the validation messages; bits go to layers or to words."""
    found = []
    for at, (layers, centres) in enumerate(((fw.Int8(embeddings=False), 16), (LAYERS_4BIT, 64), (LAYERS_4BIT, 32))):
        words = fw.Codebook(encoder=None, embeddings=centres, heads=None, granularity="matrix")
        small = fw.compress(model, data, [layers, words], progress=False)
        path = fw.save(small, out.with_name(f"{out.stem}-{at}.fly"))
        quality = evaluate(fw.load(path), data.validation)
        found.append(((quality.intent_macro_f1 + quality.span_f1) / 2, path))
        print(f"{layers}, {centres} centres: {path.stat().st_size} bytes, {found[-1][0]:.4f} on validation", flush=True)
    best = max((score, path) for score, path in found if path.stat().st_size <= MAX_BYTES)[1]
    best.replace(out)
    for _, path in found:
        path.unlink(missing_ok=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=BUNDLED_FILE)
    parser.add_argument("--vocabulary", type=int, default=6000, help="word pieces kept")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--variants", type=int, default=30, help="made of each training message")
    asked = parser.parse_args()
    data = fw.load_data("assistant")
    folder = CACHE / data.fingerprint()[:12]
    teacher = (
        NLUModel.load(folder) if (folder / "config.json").is_file() else train(data, "minilm", TEACHER, out=folder)
    )
    start = time.monotonic()
    model = student(teacher, [m.text for m in data.train], asked.vocabulary, asked.layers, asked.hidden)
    messages = texts_to_teach(data, teacher, model, asked.variants)
    loss = soft_labels_loss(teacher, model, messages, soft=1.0)
    fit(model, messages, data.validation, STUDENT, loss=loss)
    calibrate(model, data.validation)
    nlu = fw.load(smallest_loss(model, data, asked.out))
    minutes = (time.monotonic() - start) / 60
    contenders = [
        Contender("MiniLM, fp32", "PyTorch", teacher, folder / "model.safetensors"),
        Contender("bundled model", nlu.engine.title, nlu, asked.out),
        Contender("TF-IDF + SVM", "scikit-learn", ClassicClassifier.fit(data.train + data.validation), child=False),
    ]
    rows = comparison(contenders, data.test, n_latency_calls=300)
    comparison_table(rows, f"{len(data.test)} test messages of the embedded data set")
    result = {
        "machine": machine(),
        "data": {"train": len(data.train) + len(data.validation), "test": len(data.test), "intents": len(data.intents)},
        "texts_taught": len(messages),
        "minutes": round(minutes, 1),
        "validation_macro_f1": round(evaluate(nlu, data.validation).intent_macro_f1, 4),
        "models": [to_json(row) for row in rows],
    }
    (RESULTS / "bundled.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def to_json(row: Row) -> dict[str, Any]:
    """One line of the table without its flips."""
    found = row.to_dict()
    return found | {"quality": {k: v for k, v in found["quality"].items() if k != "flips"}}


if __name__ == "__main__":
    main()
