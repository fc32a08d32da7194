"""The founding experiment of 2019 again: a chatbot's classifier in few bits, its macro-F1, and its milliseconds.

    python benchmarks/founding.py [PART ...] [--seeds 0 1 2] [--again]

    quality   2 layers x 128 from scratch, and all-mpnet-base-v2 where its training is in the cache, on sara-2019-dedup
              and sara-dedup: k-means with 256 to 2 centres everywhere, or in one part alone, and 8 bits; .fly files,
              answered by the engine (founding_quality.py)
    seen      the three findings of 2019 on the training messages: as a test file that overlaps with them would show
    litert    macro-F1 and bytes of LiteRT, TensorFlow Lite's successor: fp32, 8-bit weights, dynamic, full integer
    time      milliseconds and memory: PyTorch, LiteRT, weights rebuilt as floats ("pseudo"), real int8 and codes

LiteRT needs the environments that benchmarks/peers_env.sh makes. Writes benchmarks/results/founding.json after every
measured row; what is there is not measured again without --again, so an interrupted run goes on where it stopped.
The test messages are reported on; nothing is chosen by them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import founding_litert_run
import founding_quality
import founding_time
import numpy as np
from founding_quality import FLOAT
from teachers import MPNET, find, teacher

import flyweight as fw
from flyweight.measure.bootstrap import Loss
from flyweight.measure.machine import machine

RESULTS = Path(__file__).parent / "results" / "founding.json"
SETS = ("sara-2019-dedup", "sara-dedup")
PARTS = ("quality", "seen", "litert", "time")
# Finding of 2019 -> (recipe, bound in percent of macro-F1). "collapses" was not a number then.
COLLAPSE = 25.0
FINDINGS = {
    "4 centres everywhere": ("everywhere 4", 2.0),
    "2 centres in the encoder, 256 in the rest": ("encoder 2, rest 256", 1.0),
}


class Results:
    """The JSON file: every change is written at once, whole or not at all."""

    def __init__(self, path: Path):
        self.path = path
        self.found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def part(self, name: str, key: str, again: bool) -> dict[str, Any]:
        """One entry of a part; a new one says on what machine it is measured."""
        entries = self.found.setdefault(name, {})
        if again or key not in entries:
            entries[key] = {"machine": machine(), "rows": {}}
        return entries[key]

    def write(self) -> None:
        """With the findings, computed anew from the rows."""
        self.found["findings"] = findings(self.found.get("quality", {}))
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)


def models(seeds: list[int]) -> list[tuple[str, str, int]]:
    """(name, data set, seed) of every classifier: the small one, then the BERT-size ones that have been trained."""
    found = [("small", name, seed) for seed in seeds for name in SETS]
    for name in SETS:
        if find(name, str(MPNET), 0) is None:
            print(f"missing: {MPNET.name} on {name}; train it with benchmarks/teachers.py", file=sys.stderr)
        else:
            found.append((MPNET.name, name, 0))
    return found


def open_model(base: str, name: str, seed: int) -> tuple[fw.NLUModel, fw.NLUData]:
    """Trained, or from the cache."""
    return teacher(name, "small" if base == "small" else str(MPNET), seed)


def run_quality(results: Results, seeds: list[int], again: bool) -> None:
    """Every form of every classifier."""
    for base, name, seed in models(seeds):
        part = results.part("quality", f"{base} {name} {seed}", again)
        model, data = open_model(base, name, seed)
        part |= {"base": base, "set": name, "seed": seed, "training": model.card.steps[0]}
        part["messages"] = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
        keep = _keep(results, f"{base} {name} {seed}")
        founding_quality.measure(model, data, data.test, list(founding_quality.RECIPES), part["rows"], keep)
        results.write()


def run_seen(results: Results, seeds: list[int], again: bool) -> None:
    """What 2019 reported, on messages that the small classifiers were trained on."""
    for base, name, seed in models(seeds):
        if base != "small":
            continue
        part = results.part("seen", f"{base} {name} {seed}", again)
        model, data = open_model(base, name, seed)
        part |= {"base": base, "set": name, "seed": seed, "messages": len(data.train)}
        keep = _keep(results, f"{base} {name} {seed}, training messages,")
        founding_quality.measure(model, data, data.train, founding_quality.REPORTED, part["rows"], keep)
        results.write()


def run_litert(results: Results, seeds: list[int], again: bool) -> None:
    """LiteRT's forms of the same classifiers."""
    for base, name, seed in models(seeds):
        part = results.part("litert", f"{base} {name} {seed}", again)
        if part["rows"]:
            continue
        model, data = open_model(base, name, seed)
        part |= {"base": base, "set": name, "seed": seed}
        part |= founding_litert_run.measure(model, data)
        results.write()
        for kind, row in part["rows"].items():
            print(f"litert {base} {name} {seed} {kind}: {row['intent_macro_f1']:.4f}", flush=True)


def run_time(results: Results, seeds: list[int], again: bool) -> None:
    """Milliseconds of one small classifier and of BERT-base's size."""
    for title in founding_time.MODELS:
        part = results.part("time", title, again)
        if not part["rows"]:
            part |= founding_time.measure(title)
            results.write()


def _keep(results: Results, label: str) -> Callable[[dict[str, Any]], None]:
    def keep(rows: dict[str, Any]) -> None:
        name, row = list(rows.items())[-1]
        loss = row["loss"]
        print(
            f"{label} {name}: macro-F1 {row['intent_macro_f1']:.4f}, loss {loss['loss_percent']:+.2f}% "
            f"[{loss['low_percent']:+.2f}, {loss['high_percent']:+.2f}], {row['weight_bytes']} bytes",
            flush=True,
        )
        results.write()

    return keep


def mean_loss(rows: list[dict[str, Any]]) -> Loss:
    """Mean over seeds. The interval is the mean of the seeds': the interval of the mean itself can only be narrower."""
    fields = ("parent", "child", "loss_percent", "low_percent", "high_percent")
    return Loss(**{field: float(np.mean([row["loss"][field] for row in rows])) for field in fields})


def findings(quality: dict[str, Any]) -> list[dict[str, Any]]:
    """Each recipe's loss over the seeds of one classifier and set; for the findings of 2019 also bound and verdict."""
    found = []
    for base, name in dict.fromkeys((part["base"], part["set"]) for part in quality.values()):
        parts = [part for part in quality.values() if (part["base"], part["set"]) == (base, name)]
        for recipe in founding_quality.RECIPES:
            rows = [part["rows"][recipe] for part in parts if recipe in part["rows"]]
            if not rows or recipe == FLOAT:
                continue
            loss = mean_loss(rows)
            entry = {"base": base, "set": name, "recipe": recipe, "seeds": len(rows), **loss.to_dict()}
            found.append(entry | judged(recipe.removesuffix(", founding form"), loss))
    return found


def judged(recipe: str, loss: Loss) -> dict[str, Any]:
    """Bound and verdict of a recipe that 2019 reported on; {} for the others.

    Two centres everywhere collapse where macro-F1 loses more than a quarter: proved, met or missed from below.
    """
    for bounded, bound in FINDINGS.values():
        if recipe == bounded:
            return {"bound_percent": bound, "verdict": loss.verdict(bound)}
    if recipe != "everywhere 2":
        return {}
    proved, met = loss.low_percent > COLLAPSE, loss.loss_percent > COLLAPSE
    return {"collapse_percent": COLLAPSE, "verdict": "proved" if proved else "met" if met else "missed"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--again", action="store_true", help="measure what is there again")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"part {min(unknown)!r} is unknown; allowed: {', '.join(PARTS)}")
    results = Results(RESULTS)
    runs = {"quality": run_quality, "seen": run_seen, "litert": run_litert, "time": run_time}
    try:
        for name in chosen.parts:
            runs[name](results, chosen.seeds, chosen.again)
    except KeyboardInterrupt:
        sys.exit(f"stopped; what was measured is in {RESULTS.name}, the same command goes on")


if __name__ == "__main__":
    main()
