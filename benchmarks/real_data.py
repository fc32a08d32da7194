"""The table of real data sets: teacher, every recipe, and the classic line, on the untouched test files.

    python benchmarks/real_data.py [SET ...] [--seeds 0 1] [--base minilm] [--recipes int8 ...] [--calls 300]

Per set and seed: the teacher is trained (or found, see teachers.py), compressed by each recipe (or found, see
compressed.py), and every model answers every test message. Losses are against the teacher in PyTorch fp32, with a 95%
paired bootstrap interval. Latency: batch 1, one thread, tokenizer included, interleaved; the .fly files are run by the
native engine; the ratio to the teacher is of the same run.
Writes benchmarks/results/real_data.json after every run: rows of the same set, base, seed and recipe are replaced,
others stay, losses are computed again over all seeds there. Flips are printed; the file keeps only how many.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
from compressed import QUANTIZED, RECIPES, compressed
from teachers import SETS, teacher

import flyweight as fw
from flyweight.measure.bootstrap import Loss
from flyweight.measure.classic import ClassicClassifier
from flyweight.measure.machine import machine
from flyweight.measure.memory import serving_memory
from flyweight.report.comparison import Contender, Row, comparison

RESULTS = Path(__file__).parent / "results" / "real_data.json"
METRICS = {
    "banking77": ("intent_macro_f1",),
    "sara-dedup": ("intent_macro_f1",),
    "atis": ("intent_accuracy", "span_f1"),
    "snips": ("intent_accuracy", "span_f1"),
}


def measure(name: str, base: str, seed: int, labels: list[str], n_calls: int) -> dict[str, Any]:
    """One set, one seed: rows of the table."""
    model, data = teacher(name, base, seed)
    contenders = [Contender("teacher fp32", "PyTorch", model)]
    made = {label: compressed(name, base, seed, label) for label in labels}
    for label, found in made.items():
        nlu = fw.load(found.fly)
        contenders.append(Contender(label, nlu.engine.title, nlu, found.fly))
    svm = ClassicClassifier.fit(data.train + data.validation)
    contenders.append(Contender("TF-IDF + SVM", "scikit-learn", svm, child=False))
    rows = comparison(contenders, data.test, n_latency_calls=n_calls)
    for row in rows[1:-1]:
        for flip in row.quality.flips:
            print(f"flip {name} seed {seed} {row.name}: {json.dumps(flip, ensure_ascii=False)}")
    written = [_row(row) for row in rows]
    for row in written[1:-1]:
        found = made[row["name"]]
        row |= {"minutes": found.made["minutes"], "serving_memory_mb": serving_memory(found.fly).resident_mb}
    return {
        "set": name,
        "base": Path(base).name,
        "seed": seed,
        "messages": {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)},
        "intents": len(data.intents),
        "entity_labels": len(data.entity_labels),
        "training": model.card.steps[0],
        "teacher_bytes": model.size_bytes(),
        "rows": written,
    }


def _row(row: Row) -> dict[str, Any]:
    """Without the flips: how many stays."""
    found = row.to_dict()
    del found["quality"]["flips"]
    return found


def losses(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Loss of each file on each set: mean over seeds, and the verdict on its bound.

    The interval is the mean of the seeds' intervals: the interval of the mean itself can only be narrower.
    """
    found = []
    for name, base in dict.fromkeys((run["set"], run["base"]) for run in runs):
        rows = [row for run in runs if (run["set"], run["base"]) == (name, base) for row in run["rows"]]
        for label, metric in itertools.product(RECIPES, METRICS[name]):
            if of_seed := [row["quality"]["losses"][metric] for row in rows if row["name"] == label]:
                bound = RECIPES[label].bound_percent
                fields = ("parent", "child", "loss_percent", "low_percent", "high_percent")
                loss = Loss(**{k: float(np.mean([x[k] for x in of_seed])) for k in fields})
                found.append(
                    {
                        "set": name,
                        "base": base,
                        "file": label,
                        "metric": metric,
                        "seeds": len(of_seed),
                        **loss.to_dict(),
                        "bound_percent": bound,
                        "verdict": None if bound is None else loss.verdict(bound),
                    }
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=list(SETS), metavar="SET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--base", default="minilm")
    bounded = [label for label, entry in QUANTIZED.items() if entry.bound_percent is not None]
    parser.add_argument("--recipes", nargs="+", default=bounded, choices=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--calls", type=int, default=300, help="timed calls a model")
    chosen = parser.parse_args()
    for name in chosen.sets:
        for seed in chosen.seeds:
            run = measure(name, chosen.base, seed, chosen.recipes, chosen.calls)
            for row in run["rows"]:
                q, ms = row["quality"], row["latency"]["mean_ms"] if row["latency"] else float("nan")
                print(
                    f"{name} seed {seed} {row['name']:14} macro-F1 {q['intent_macro_f1']:.4f} "
                    f"accuracy {q['intent_accuracy']:.4f} span F1 {q['span_f1']:.4f} flips {q['n_flips']} "
                    f"bytes {row['size_bytes']} ms {ms:.2f}",
                    flush=True,
                )
            if name in SETS:
                keep(run)
    if not RESULTS.exists():
        return
    for loss in json.loads(RESULTS.read_text(encoding="utf-8"))["losses"]:
        print(
            f"{loss['set']:12} {loss['base']:18} {loss['file']:20} {loss['metric']:16} seeds {loss['seeds']} "
            f"{loss['parent']:.4f} -> {loss['child']:.4f} "
            f"loss {loss['loss_percent']:+.3f}% [{loss['low_percent']:+.3f}, {loss['high_percent']:+.3f}] "
            f"bound {loss['bound_percent']}%: {loss['verdict']}"
        )


def keep(run: dict[str, Any], results: Path = RESULTS) -> None:
    """Put one run into a file of results, rows of other recipes stay."""
    found = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {"runs": []}
    runs = {(r["set"], r["base"], r["seed"]): r for r in found["runs"]}
    key = run["set"], run["base"], run["seed"]
    kept = {row["name"]: row for row in runs.get(key, run)["rows"]} | {row["name"]: row for row in run["rows"]}
    order = ["teacher fp32", *RECIPES, "TF-IDF + SVM"]
    runs[key] = run | {"rows": sorted(kept.values(), key=lambda row: order.index(row["name"]))}
    ordered = sorted(runs.values(), key=lambda r: (SETS.index(r["set"]), r["base"], r["seed"]))
    result = {"machine": machine(), "threads": 1, "runs": ordered, "losses": losses(ordered)}
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
