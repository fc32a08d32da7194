"""Tables of docs/quantization.md, from real_data.json, pseudo.json and engine_static.json of benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
TITLES = {"banking77": "BANKING77", "sara-dedup": "sara-dedup", "atis": "ATIS", "snips": "SNIPS"}
BASES = {"minilm": "MiniLM", "all-mpnet-base-v2": "mpnet-base"}
SHAPES = {"2x128": "2 x 128", "minilm": "MiniLM", "bert-base": "BERT-base"}
METRICS = {"intent_macro_f1": "macro-F1", "intent_accuracy": "accuracy", "span_f1": "span F1"}
# bits -> recipes after training, recipes during training
BITS = {
    8: (("int8",), "int8 QAT"),
    4: (("4-bit codes", "4-bit codes, GPTQ"), "4-bit trained codes"),
    3: (("3-bit codes", "3-bit codes, GPTQ"), "3-bit trained codes"),
    2: (("2-bit codes", "2-bit codes, GPTQ"), "2-bit trained codes"),
    1: (("1-bit codes", "1-bit codes, GPTQ"), "1-bit trained codes"),
}


def read(name: str) -> dict[str, Any]:
    """A file of benchmarks/results; {} where it is not there."""
    path = RESULTS / name
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def losses() -> str:
    """Loss of every recipe that has a bound: base, set, metric, interval, verdict."""
    lines = [
        "| base | recipe | data | metric | seeds | loss (95%) | bound | |",
        "|---|---|---|---|--:|--:|--:|---|",
    ]
    for base, title in BASES.items():
        found = [x for x in read("real_data.json")["losses"] if x["base"] == base and x["bound_percent"] is not None]
        for label in dict.fromkeys(x["file"] for x in found):
            for x in (x for x in found if x["file"] == label):
                lines.append(
                    f"| {title} | {label} | {TITLES[x['set']]} | {METRICS[x['metric']]} | {x['seeds']} "
                    f"| {loss_of(x)} | {x['bound_percent']}% | {x['verdict']} |"
                )
    return "\n".join(lines)


def costs() -> str:
    """Bytes, memory, milliseconds and minutes of every recipe, seed 0 of each set."""
    lines = [
        "| base, data | recipe | MB on disk | MB serving | ms | times the teacher | minutes to make |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for run in read("real_data.json")["runs"]:
        if run["seed"] != 0:
            continue
        for row in run["rows"][1:-1]:
            if row.get("minutes") is None:  # a row of before the recipes were timed
                continue
            lines.append(
                f"| {BASES[run['base']]}, {TITLES[run['set']]} | {row['name']} | {row['size_bytes'] / 1e6:.1f} "
                f"| {row['serving_memory_mb']:.0f} | {row['latency']['mean_ms']:.2f} | {row['speedup']:.1f}x "
                f"| {row['minutes']:.1f} |"
            )
    return "\n".join(lines)


def during_or_after(name: str = "sara-dedup") -> str:
    """Post-training against trained, at 8 to 1 bits: losses on one set, seed 0, and minutes."""
    [run] = [r for r in read("real_data.json")["runs"] if (r["set"], r["base"], r["seed"]) == (name, "minilm", 0)]
    rows = {row["name"]: row for row in run["rows"]}
    lines = [
        "| bits | recipe | macro-F1 loss (95%) | span F1 loss (95%) | flips | minutes |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for bits, (after, during) in BITS.items():
        for label in (*after, during):
            if (row := rows.get(label)) is None:
                lines.append(f"| {bits} | {label} | not measured yet | | | |")
                continue
            q = row["quality"]
            lines.append(
                f"| {bits} | {label} | {loss_of(q['losses']['intent_macro_f1'])} | {loss_of(q['losses']['span_f1'])} "
                f"| {q['n_flips']} | {row['minutes']:.1f} |"
            )
    return "\n".join(lines)


def real_or_pseudo() -> str:
    """Codes executed against the same codes rebuilt as floats, and against int8."""
    lines = [
        "| base, data | codes | flips | largest gap, allowed | ms: codes, int8, floats in the engine, in PyTorch "
        "| MB serving: codes, int8, floats |",
        "|---|---|--:|--:|---|---|",
    ]
    floats = "floats rebuilt, engine"
    for run in read("pseudo.json").get("runs", []):
        ms, mb, label = run["ms"], run["serving_memory_mb"], run["recipe"]
        times = ", ".join(f"{ms[key]['p50_ms']:.2f}" for key in (label, "int8", floats, "floats rebuilt, PyTorch"))
        lines.append(
            f"| {BASES[run['base']]}, {TITLES[run['set']]} | {label} | {run['n_flips']} of {run['n_messages']} "
            f"| {run['largest_gap']:.3f}, {run['gap_tolerance']:.3f} | {times} "
            f"| {', '.join(f'{mb[key]:.0f}' for key in (label, 'int8', floats))} |"
        )
    return "\n".join(lines)


def static_or_dynamic() -> str:
    """Static against dynamic int8 in the engine, by model and tokens."""
    lines = [
        "| model | tokens | pairs, calls | dynamic, us | static, us | dynamic / static (95%) |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for run in read("engine_static.json").get("runs", []):
        lines.append(
            f"| {SHAPES[run['model']]} | {run['n_tokens']} | {run['n_pairs']}, {run['n_calls']} "
            f"| {run['dynamic_us']:.1f} | {run['static_us']:.1f} "
            f"| {run['ratio']:.3f} ({run['ratio_low']:.3f} to {run['ratio_high']:.3f}) |"
        )
    return "\n".join(lines)


def loss_of(x: dict[str, Any]) -> str:
    """A loss with its interval."""
    return f"{x['loss_percent']:+.2f}% ({x['low_percent']:+.2f} to {x['high_percent']:+.2f})"
