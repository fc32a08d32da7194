"""Structured pruning to a speed: 2x, 4x and 8x faster than dense int8 in the same engine, and what that costs.

    python benchmarks/structured.py [banking77 snips sara-dedup] [--seeds 0] [--base minilm] [--speeds 2 4 8]
    python benchmarks/structured.py --grains [sara-dedup] [--seeds 0]      # heads, neurons, both: at equal milliseconds
    python benchmarks/structured.py --shapes [sara-dedup]      # are times of whole shapes sums of the measured ones?

Both dense and pruned model are int8 files. Losses on the test messages against the teacher in PyTorch fp32, with a 95%
paired bootstrap interval, as real_data.py measures them. Engine: token ids in, logits out, batch 1, one thread, the
tokenizer not counted, call by call in turn on the test messages; `times_faster` is the ratio of means, the median of
the calls' ratios stands beside it, since a busy machine moves it less.
Models are made once and found in the cache (compressed.py); an interrupted making resumes. Writes
benchmarks/results/structured.json after every set and seed, with --grains benchmarks/results/structured_grains.png,
with --shapes benchmarks/results/structured_shapes.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from compressed import GRAINS, STRUCTURED, compressed
from real_data import METRICS, keep, measure
from teachers import teacher

import flyweight as fw
from flyweight.analyse.shapes import Clock, compare_engines
from flyweight.measure.latency import single_thread
from flyweight.measure.machine import machine
from flyweight.model.encoder import LayerShape

RESULTS = Path(__file__).parent / "results" / "structured.json"
SHAPES = RESULTS.with_name("structured_shapes.json")
CHART = RESULTS.with_name("structured_grains.png")
DENSE = "int8"
SPEEDS = (2, 4, 8)
WHOLE = {  # (heads, neurons) of each layer of MiniLM's shape, and of smaller ones
    "dense": ((12, 1536),) * 6,
    "half of each layer": ((6, 768),) * 6,
    "half of the layers": ((12, 1536),) * 3,
    "a quarter of each": ((3, 384),) * 6,
    "uneven": ((4, 512), (2, 256), (0, 512), (6, 128)),
    "no heads": ((0, 768),) * 6,
    "no neurons": ((6, 0),) * 6,
    "an eighth": ((4, 256), (3, 256), (2, 128)),
}
COLOURS = {"heads": "#c0392b", "neurons": "#2471a3", "heads+neurons": "#1e8449"}


def engine_times(name: str, base: str, seed: int, labels: list[str], n_calls: int) -> dict[str, dict[str, Any]]:
    """Label -> milliseconds in the engine, times faster than dense int8, and the shape."""
    _, data = teacher(name, base, seed)
    parsers = {label: fw.load(compressed(name, base, seed, label).fly) for label in (DENSE, *labels)}
    encoded = parsers[DENSE].tokenizer.encode_batch([m.text for m in data.test])
    found = {}
    for label in labels:
        with single_thread():
            pair = {DENSE: parsers[DENSE].engine, label: parsers[label].engine}
            timed = compare_engines(pair, encoded, n_calls)
        layers = parsers[label].artifact.manifest["model"]["encoder"]["layers"]
        found[label] = {
            "engine_ms": float(timed[label].mean()),
            "dense_engine_ms": float(timed[DENSE].mean()),
            "times_faster": float(timed[DENSE].mean() / timed[label].mean()),
            "times_faster_median": float(np.median(timed[DENSE] / timed[label])),
            "layers": [[layer["heads"], layer["ffn"]] for layer in layers],
        }
    return found


def run(name: str, base: str, seed: int, labels: list[str], n_calls: int) -> None:
    """One set and seed, into the results."""
    rows = measure(name, base, seed, [DENSE, *labels], n_calls)
    times = engine_times(name, base, seed, labels, n_calls)
    for row in rows["rows"]:
        row |= times.get(row["name"], {})
    keep(rows, RESULTS)
    print_losses(name)


def print_losses(name: str) -> None:
    """Losses and times of a set, over the seeds that are there."""
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    rows = [row for each in found["runs"] if each["set"] == name for row in each["rows"] if "times_faster" in row]
    for loss in found["losses"]:
        own = [row for row in rows if row["name"] == loss["file"]]
        if loss["set"] == name and own:
            faster = np.mean([row["times_faster_median"] for row in own])
            print(
                f"{name:12} {loss['file']:20} {loss['metric']:16} {loss['parent']:.4f} -> {loss['child']:.4f} "
                f"loss {loss['loss_percent']:+.2f}% [{loss['low_percent']:+.2f}, {loss['high_percent']:+.2f}] "
                f"bound {loss['bound_percent']}%: {loss['verdict']}; {faster:.2f}x, seeds {loss['seeds']}",
                flush=True,
            )


def shapes(name: str, base: str, seed: int) -> None:
    """The table of measured times, and of whole shapes what it predicts beside what is measured; into SHAPES."""
    model, data = teacher(name, base, seed)
    clock = Clock(model, [m.text for m in data.validation], 8, None)
    times, rows = clock.table(), []
    for label, whole in WHOLE.items():
        layers = tuple(LayerShape(heads=heads, ffn=ffn) for heads, ffn in whole)
        measured = clock.share(replace(model.encoder.config, layers=layers))
        predicted = times.predicted(layers)
        rows.append({"shape": label, "layers": whole, "predicted": predicted, "measured": measured})
        error = 100 * (predicted / measured - 1)
        print(f"{label:20} predicted {predicted:.4f} measured {measured:.4f} of dense, {error:+.1f}%", flush=True)
    found = {"machine": machine(), "threads": 1, "set": name, "base": Path(base).name, "bits": 8, "table": vars(times)}
    SHAPES.write_text(json.dumps(found | {"whole": rows}, indent=1) + "\n", encoding="utf-8")


def draw(name: str) -> Path:
    """Loss of the set's first metric by times faster, a line a grain."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    metric = METRICS[name][0]
    loss = {x["file"]: x for x in found["losses"] if (x["set"], x["metric"]) == (name, metric)}
    rows = {row["name"]: row for each in found["runs"] if each["set"] == name for row in each["rows"]}
    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    ax = figure.subplots()
    for grain, colour in COLOURS.items():
        labels = [label for label in GRAINS if label.startswith(f"{grain} only") and label in loss]
        x = [rows[label]["times_faster_median"] for label in labels]
        y = [loss[label]["loss_percent"] for label in labels]
        ax.plot(x, y, "o-", color=colour, label=grain.replace("+", " and "))
        ends = [(loss[label]["low_percent"], loss[label]["high_percent"]) for label in labels]
        ax.fill_between(x, [e[0] for e in ends], [e[1] for e in ends], color=colour, alpha=0.1, linewidth=0)
    ax.axhline(0, color="grey", linewidth=0.8)
    ax.set_xlabel("times faster than dense int8 in the same engine")
    ax.set_ylabel(f"{metric} lost, % (95% interval)")
    ax.set_title(f"Whole heads, single neurons, or both: {name}")
    ax.legend()
    FigureCanvasAgg(figure)
    figure.savefig(CHART)
    return CHART


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--speeds", type=int, nargs="+", default=list(SPEEDS), choices=SPEEDS)
    parser.add_argument("--grains", action="store_true", help="heads, neurons, both at equal milliseconds, and a chart")
    parser.add_argument("--shapes", action="store_true", help="time shapes only: the table, and whether times add up")
    parser.add_argument("--calls", type=int, default=300, help="timed calls a model")
    chosen = parser.parse_args()
    if chosen.shapes:
        shapes((chosen.sets or ["sara-dedup"])[0], chosen.base, chosen.seeds[0])
        return
    labels = list(GRAINS) if chosen.grains else [label for label in STRUCTURED if int(label[11:-1]) in chosen.speeds]
    for name in chosen.sets or (["sara-dedup"] if chosen.grains else ["sara-dedup", "banking77", "snips"]):
        for seed in chosen.seeds:
            run(name, chosen.base, seed, labels, chosen.calls)
        if chosen.grains:
            print(draw(name))


if __name__ == "__main__":
    main()
