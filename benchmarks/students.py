"""Students compared at equal milliseconds: one chart of F1 against ms, and the suggested shapes beside uniform ones.

    python benchmarks/students.py [--sets banking77] [--calls 300] [--contenders NAME ...] [--out FILE] [--again]
    python benchmarks/students.py --draw        # the charts again, from the results

Measured like the headline (headline.py), all in one run: shallow transformers, deeper and thinner ones, BiLSTMs, CNNs,
bags, taught alike (student_recipes.py) and run as int8 by the engine; the teacher in PyTorch fp32 and in int8; MiniLM
in int8; the shape of DistilBERT (6 x 768, cut from the teacher and taught by it) in ONNX Runtime int8 and in ours;
TF-IDF + SVM. Writes benchmarks/results/students.json, and docs/img/students-SET.png of every set in it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import headline
from headline import CLASSIC, MINILM, OURS, PARENT, TEACHER_RUNTIMES
from real_data import METRICS
from student_recipes import FAMILIES, STUDENTS, SUGGESTED, TARGETS

RESULTS = Path(__file__).parent / "results" / "students.json"
CHARTS = Path(__file__).resolve().parents[1] / "docs" / "img"
SHAPE = "DistilBERT shape"
ANCHORS = (
    *TEACHER_RUNTIMES,
    *(f"{MINILM}, {runtime}" for runtime in ("ONNX Runtime int8", "LiteRT int8", "Flyweight int8")),
    *(f"{SHAPE}, ONNX Runtime int8", SHAPE, CLASSIC),
)
SHAPES = tuple(label for shapes in FAMILIES.values() for label in shapes)
CONTENDERS = (*ANCHORS, *SHAPES, *(label for pair in SUGGESTED.values() for label in pair))
COLOURS = dict(zip(FAMILIES, ("#c0392b", "#e67e22", "#2471a3", "#1e8449", "#7d3c98"), strict=True))
TITLES = {"intent_macro_f1": "intent macro-F1", "intent_accuracy": "intent accuracy"}
SET_TITLES = {"banking77": "BANKING77", "sara-dedup": "sara-dedup", "atis": "ATIS", "snips": "SNIPS"}
ANCHOR_COLOURS = {"teacher": "#202020", MINILM: "#17a589", SHAPE: "#b03a8c", CLASSIC: "#b7950b"}
MARKERS = {
    **dict(zip(TEACHER_RUNTIMES, ("o", "^", "D", "v", "s"), strict=True)),
    CLASSIC: "*",
}
PLACES = ((5, -9), (-5, 5))  # of a shape's name beside its point, in points; families by turns


def points(measured: dict[str, Any]) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """(family -> its rows by milliseconds, the other rows) of a measured set."""
    rows = {r["label"] if r["group"] == "student" else r["name"]: r for r in measured["rows"]}
    lines = {
        family: sorted((rows[label] for label in shapes if label in rows), key=lambda r: r["times"]["mean_ms"])
        for family, shapes in FAMILIES.items()
    }
    return {family: line for family, line in lines.items() if line}, [rows[name] for name in ANCHORS if name in rows]


def draw(measured: dict[str, Any], folder: Path = CHARTS) -> Path:
    """The set's first metric against milliseconds (log), a line a family; where 100x and 1000x lie."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = METRICS[measured["set"]][0]
    lines, anchors = points(measured)
    figure = Figure(figsize=(10, 5.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    ax = figure.subplots()
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    for i, (family, line) in enumerate(lines.items()):
        at = [(r["times"]["mean_ms"], r["quality"][metric]) for r in line]
        ax.plot(*zip(*at, strict=True), "o-", color=COLOURS[family], markersize=4, linewidth=1.5, label=family)
        style: dict[str, Any] = {"fontsize": 7, "color": COLOURS[family], "ha": ("left", "right")[i % 2]}
        for r, xy in zip(line, at, strict=True):
            ax.annotate(r["label"].removeprefix(f"{family} "), xy, PLACES[i % 2], textcoords="offset points", **style)
    families = ax.legend(loc="lower right", fontsize=8, title="taught alike, Flyweight int8", title_fontsize=8)
    dots = []
    for r in anchors:
        model, runtime = model_and_runtime(r)
        title = model if model == CLASSIC else f"{model}, {runtime}"
        xy = r["times"]["mean_ms"], r["quality"][metric]
        look: dict[str, Any] = {
            "color": ANCHOR_COLOURS[model],
            "markersize": 9 if model == CLASSIC else 6,
            "alpha": 0.8,
        }
        dots += ax.plot(*xy, MARKERS[runtime], label=title, linestyle="none", **look)
    ax.add_artist(families)
    figure.legend(handles=dots, loc="outside right center", fontsize=8, frameon=False)
    marks(ax, measured, metric)
    ax.set_xlabel("milliseconds a message, tokenizer included, one thread (log)")
    ax.set_ylabel(f"{TITLES[metric]}, test messages")
    ax.set_title(f"{SET_TITLES[measured['set']]}: what a message costs, and what it is worth")
    ax.grid(visible=True, which="major", alpha=0.25)
    path = folder / f"students-{measured['set']}.png"
    figure.savefig(path)
    return path


def marks(ax: Any, measured: dict[str, Any], metric: str) -> None:
    """Lines at the teacher's score, and at 1/100 and 1/1000 of its time with the loss that is allowed there."""
    [parent] = [r for r in measured["rows"] if r["name"] == PARENT]
    score, ms = parent["quality"][metric], parent["times"]["mean_ms"]
    ax.axhline(score, color="#202020", linewidth=0.8, linestyle=":")
    for label, target in TARGETS.items():
        x, y = ms / target.speedup, score * (1 - target.intent_percent / 100)
        ax.axvline(x, color="#202020", linewidth=0.8, linestyle=":")
        ax.annotate(
            label, (x, 0.01), (3, 0), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8
        )
        ax.plot(x, y, "x", color="#202020", markersize=7)
        ax.annotate(f"-{target.intent_percent}%", (x, y), (4, -4), textcoords="offset points", fontsize=7)


def model_and_runtime(row: dict[str, Any]) -> tuple[str, str]:
    """(teacher, MiniLM, DistilBERT shape or the classic line; what runs it) of a row that is in no family."""
    if row["group"] == "classic":
        return row["name"], row["name"]
    model, _, runtime = row["name"].rpartition(", ")
    return (row["label"], OURS) if row["group"] == "student" else (model or "teacher", runtime)


def main() -> None:
    if sys.argv[1:] == ["--draw"]:
        results = headline.Results(RESULTS)
    else:
        chosen = headline.arguments(
            __doc__, RESULTS, ("banking77",), CONTENDERS, (*headline.CONTENDERS, *CONTENDERS, *STUDENTS)
        )
        results = headline.run(chosen, {"suggested": SUGGESTED})
    for measured in results.sets.values():
        print(draw(measured))


if __name__ == "__main__":
    main()
