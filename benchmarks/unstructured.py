"""Pruned weights: magnitude, movement and 1x4 blocks at 50 to 90%, all with distillation, float and then int8.

    python benchmarks/unstructured.py [banking77 snips] [--seeds 0] [--base minilm] [--recipes "1x4 80%" ...]

Losses on the test messages against the teacher in PyTorch fp32, with a 95% paired bootstrap interval, as real_data.py
measures them; bytes of the file; milliseconds a message in the engine, batch 1, one thread, tokenizer included,
interleaved; minutes of making, those of int8 without those of pruning. Other schedules than the gradual one (one-shot,
iterative), labels alone, and pruning without training stand beside them at 80%.
Models are made once and found in the cache (compressed.py); an interrupted training resumes. Writes
benchmarks/results/unstructured.json after every set and seed: rows of other recipes stay.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from compressed import PRUNED, SPARSITIES
from real_data import keep, measure

RESULTS = Path(__file__).parent / "results" / "unstructured.json"
GRID = [f"{kind} {percent}%" for kind in ("magnitude", "movement", "1x4") for percent in SPARSITIES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=["banking77", "snips"], metavar="SET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--recipes", nargs="+", default=GRID, choices=list(PRUNED), metavar="RECIPE")
    parser.add_argument("--calls", type=int, default=100, help="timed calls a model")
    chosen = parser.parse_args()
    for name in chosen.sets:
        for seed in chosen.seeds:
            labels = [of for label in chosen.recipes for of in (label, f"{label}, int8")]
            keep(measure(name, chosen.base, seed, labels, chosen.calls), RESULTS)
            print_losses(name)


def print_losses(name: str) -> None:
    """Losses of all recipes on a set, over the seeds that are there."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = [row for run in found["runs"] if run["set"] == name for row in run["rows"]]
    for loss in found["losses"]:
        if loss["set"] == name:
            minutes = [row["minutes"] for row in rows if row["name"] == loss["file"]]
            print(
                f"{name:12} {loss['file']:28} {loss['metric']:16} {loss['parent']:.4f} -> {loss['child']:.4f} "
                f"loss {loss['loss_percent']:+.2f}% [{loss['low_percent']:+.2f}, {loss['high_percent']:+.2f}] "
                f"seeds {loss['seeds']}, {sum(minutes) / len(minutes):.1f} minutes",
                flush=True,
            )


if __name__ == "__main__":
    main()
