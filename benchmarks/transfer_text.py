"""Which transfer text makes a student good? `small` from scratch learns a teacher's logits, and nothing else.

    python benchmarks/transfer_text.py sara-dedup none splice mix all [--each 4] [--steps 4000] [--seed 0]

A kind may be several, joined by +. Every student takes about as many steps, whatever text there is. Judged on
validation messages only, by which the epoch is chosen too: the numbers compare kinds of text, and are no result.
Teachers are those of benchmarks/teachers.py; what they say is kept in FLYWEIGHT_CACHE.
"""

from __future__ import annotations

import argparse
import json

from teachers import CACHE, teacher

import flyweight as fw
from flyweight.training.logits import soft_labels_loss
from flyweight.training.loop import fit
from flyweight.training.teacher import SMALL_RATE, build
from flyweight.training.transfer import KINDS
from flyweight.training.unlabelled import unlabelled_text


def student(parent: fw.NLUModel, data: fw.NLUData, kinds: list[str], each: int, steps: int, seed: int) -> fw.NLUModel:
    """A student of the training messages and `each` times as much text of the kinds."""
    model = build(data, "small", seed=seed)
    train = (*data.train, *unlabelled_text(data, model, parent, each if kinds else 0, seed, kinds=kinds))
    known = [m for m in data.validation if m.intent in model.labels.intents]
    losses = [soft_labels_loss(parent, model, part, soft=1.0, folder=CACHE / "answers") for part in (train, known)]
    settings = fw.TrainingSettings(learning_rate=SMALL_RATE, seed=seed)
    epochs = max(1, round(steps * settings.batch_size / len(train)))
    settings = fw.TrainingSettings(learning_rate=SMALL_RATE, seed=seed, epochs=epochs)
    return fit(model, train, known, settings, loss=losses[0], score=losses[1].agreement)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set")
    parser.add_argument("kinds", nargs="+", help="none, all, or kinds joined by +")
    parser.add_argument("--each", type=int, default=4, help="messages of text a training message")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    parent, data = teacher(chosen.set, "minilm", 0)
    named = {"none": [], "all": list(KINDS)}
    for name in chosen.kinds:
        kinds = named.get(name, name.split("+"))
        model = student(parent, data, kinds, chosen.each, chosen.steps, chosen.seed)
        quality = fw.evaluate(model, data.validation, against=parent)
        row = {
            "set": chosen.set,
            "text": name,
            "validation_macro_f1": round(quality.intent_macro_f1, 4),
            "validation_accuracy": round(quality.intent_accuracy, 4),
            "validation_span_f1": round(quality.span_f1, 4),
            "flips": quality.n_flips,
            **{k: model.card.steps[-1][k] for k in ("messages", "steps", "best_epoch", "validation_agreement")},
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
