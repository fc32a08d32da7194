"""Our training step against a plain transformers loop: MiniLM, batch 32 x 12 tokens, fused AdamW, bf16 autocast.

    python benchmarks/training_step.py [--threads 2] [--rounds 40]

Both in one process, alternating step by step on the same random messages; writes benchmarks/results/training_step.json.
The vocabulary of the messages is 2,000 words, about that of BANKING77's training file.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from flyweight.answers import Labels
from flyweight.data.messages import Message
from flyweight.measure.machine import machine, multiplies_bf16_natively
from flyweight.model.checkpoints import load_encoder, resolve_base
from flyweight.model.nlu import NLUModel
from flyweight.tokenizer import Tokenizer
from flyweight.training.loop import TrainingSettings, _Run
from flyweight.training.losses import labels_loss

BATCH, TOKENS, INTENTS, WORDS = 32, 12, 77, 2000
RESULTS = Path(__file__).parent / "results" / "training_step.json"


def messages(folder: Path, n: int) -> list[Message]:
    """Messages of exactly 12 tokens with [CLS] and [SEP]: 10 whole words of the vocabulary each."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = [w for w in vocabulary if w.isascii() and w.isalpha()][:WORDS]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, TOKENS - 2)) for _ in range(n)]
    return [Message(text, f"intent {i % INTENTS}") for i, text in enumerate(texts)]


def our_step(folder: Path, found: list[Message], stack: ExitStack) -> Callable[[], float]:
    """One step of `fit`."""
    labels = Labels(tuple(sorted({m.intent for m in found if m.intent})))
    encoder = load_encoder(folder)
    model = NLUModel(encoder.config, Tokenizer.from_file(folder / "tokenizer.json", 64), labels)
    model.encoder.load_state_dict(encoder.state_dict())
    settings = TrainingSettings(epochs=1000, learning_rate=1e-4)
    run = _Run(model, found, (), settings, labels_loss, torch.device("cpu"), None)
    stack.enter_context(run.small_vocabulary())
    return run.train_step


def plain_step(folder: Path, found: list[Message]) -> Callable[[], float]:
    """The loop that every tutorial shows."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=INTENTS).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", 64)
    ids = torch.from_numpy(np.stack([e.ids for e in tokenizer.encode_batch([m.text for m in found])])).long()
    assert ids.shape[1] == TOKENS
    labels = torch.tensor([i % INTENTS for i in range(len(found))])
    mask = torch.ones_like(ids)
    at = 0

    def step() -> float:
        nonlocal at
        rows = torch.arange(at, at + BATCH) % len(found)
        at += BATCH
        with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16_natively()):
            loss = model(input_ids=ids[rows], attention_mask=mask[rows], labels=labels[rows]).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=40)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    folder = resolve_base("minilm")
    found = messages(folder, BATCH * 50)
    with ExitStack() as stack:
        steps = {"flyweight": our_step(folder, found, stack), "transformers": plain_step(folder, found)}
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for i in range(chosen.rounds + 5):
            for name in list(steps) if i % 2 else list(steps)[::-1]:
                start = time.perf_counter()
                steps[name]()
                if i >= 5:
                    taken[name].append(time.perf_counter() - start)
    result = {"machine": machine(), "threads": chosen.threads, "batch": BATCH, "tokens": TOKENS}
    for name, seconds in taken.items():
        result[name] = {
            "p25_s": float(np.percentile(seconds, 25)),
            "p50_s": float(np.median(seconds)),
            "best_s": min(seconds),
        }
        print(
            f"{name:12} best {min(seconds):.4f} s, p25 {result[name]['p25_s']:.4f} s, p50 {result[name]['p50_s']:.4f} s"
        )
    result["ratio_p50"] = result["transformers"]["p50_s"] / result["flyweight"]["p50_s"]
    result["ratio_best"] = result["transformers"]["best_s"] / result["flyweight"]["best_s"]
    print(f"transformers / flyweight: p50 {result['ratio_p50']:.2f}, best {result['ratio_best']:.2f}")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
