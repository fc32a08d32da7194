"""Tables of docs/headline.md and README's headline, from headline.json, students.json, ablation.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantization_tables import METRICS, TITLES, loss_of, read

MISSING = "Not measured yet."
METRICS_OF = {  # what counts as loss on each set
    "banking77": ("intent_macro_f1",),
    "sara-dedup": ("intent_macro_f1",),
    "atis": ("intent_accuracy", "span_f1"),
    "snips": ("intent_accuracy", "span_f1"),
}
SMALL_ENOUGH = 1.0  # percent that the smallest file may lose


def sentences() -> str:
    """What may be said of each target: both ratios, the losses, and whether the promise is kept."""
    found = read("headline.json").get("targets", [])
    lines = []
    for each in found:
        sets, runtimes = each["sets"], {x["fastest_int8"] for x in each["sets"]}
        intent, span = each["intent"], each["span"]
        kept = [f"{intent['verdict']} ({_bound(intent)})"]
        losses = f"a mean loss of {loss_of(intent)} in intents"
        if span is not None:
            losses += f" and {loss_of(span)} in span F1"
            kept.append(f"span F1 {span['verdict']} ({_bound(span)})")
        if each["worst_met"] is not None:
            kept.append(f"largest single loss {each['worst_percent']:+.2f}%, {_met(each['worst_met'])}")
        against = _range([x["int8"] for x in sets if x["int8"] is not None])
        fastest = " or ".join(sorted(name for name in runtimes if name is not None))
        where = ", ".join(TITLES[x["set"]] for x in sets)
        lines.append(
            f"- **{each['label']}** ({where}): {_range([x['parent'] for x in sets])} times as fast as the fp32 teacher "
            f"in PyTorch ({_met(each['speed_met'])}), **{against} times the same model in the fastest int8 runtime of "
            f"today** ({fastest}), at {losses}: {'; '.join(kept)}."
        )
    return "\n".join(lines) or MISSING


def targets() -> str:
    """A line a target and set: loss of every metric, milliseconds, both ratios with their intervals."""
    lines = [
        "| target | data | seeds | loss (95%) | ms | times PyTorch fp32 (95%); in a row | times fastest int8 (95%) |",
        "|---|---|--:|---|--:|---|---|",
    ]
    for each in read("headline.json").get("targets", []):
        for x in each["sets"]:
            losses = "; ".join(f"{METRICS[m]} {loss_of(loss)}" for m, loss in x["losses"].items())
            int8 = "-" if x["int8"] is None else f"{_ratio(x['int8'])}, {x['fastest_int8']}"
            lines.append(
                f"| {each['label']} | {TITLES[x['set']]} | {x['seeds']} | {losses} | {x['mean_ms']:.3g} "
                f"| {_ratio(x['parent'])}; {_three(x['parent']['row'])} | {int8} |"
            )
    return "\n".join(lines) if len(lines) > 2 else MISSING


def contenders(name: str = "headline.json") -> str:
    """Everything that was timed in one run, a table a set."""
    lines: list[str] = []
    for measured in read(name).get("sets", []):
        metrics = METRICS_OF[measured["set"]]
        heads = " | ".join(f"{METRICS[m]} (loss)" for m in metrics)
        lines += [
            "",
            f"**{TITLES[measured['set']]}**, {measured['calls']} calls each, {measured['machine']['cpu']}:",
            "",
            f"| contender | {heads} | ms | in a row | times PyTorch fp32 | times the fastest int8 | MB |",
            f"|---|{'--:|' * (len(metrics) + 5)}",
        ]
        for row in measured["rows"]:
            times, q = row["times"], row["quality"]
            scores = [f"{q[m]:.4f} ({q['losses'][m]['loss_percent']:+.2f}%)" for m in metrics]
            if row["group"] == "classic":  # it answers intents alone
                scores = [s if m != "span_f1" else "-" for s, m in zip(scores, metrics, strict=True)]
            cells = [_title(row), *scores, f"{times['mean_ms']:.3g}", f"{times['row_mean_ms']:.3g}"]
            cells += [_three(times[k]["ratio"]) if k in times else "-" for k in ("parent", "int8")]
            cells.append("-" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).strip() or MISSING


def chart(name: str = "banking77") -> str:
    """The picture of benchmarks/students.py."""
    path = Path(__file__).parent / "img" / f"students-{name}.png"
    return f"![{TITLES[name]}: F1 against milliseconds](img/{path.name})" if path.is_file() else MISSING


def suggested() -> str:
    """Pairs at equal milliseconds: the suggested shape and the uniformly scaled one."""
    lines = ["| data | | metric | suggested: loss | ms | uniform: loss | ms |", "|---|---|---|--:|--:|--:|--:|"]
    found = read("students.json")
    for measured in found.get("sets", []):
        rows = {row["label"]: row for row in measured["rows"] if row["group"] == "student"}
        for title, pair in found.get("suggested", {}).items():
            if not set(pair) <= rows.keys():
                continue
            for metric in METRICS_OF[measured["set"]]:
                cells = [TITLES[measured["set"]], title, METRICS[metric]]
                for label in pair:
                    row = rows[label]
                    cells += [loss_of(row["quality"]["losses"][metric]), f"{row['times']['mean_ms']:.3g}"]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else MISSING


def ablation() -> str:
    """What leaving out each ingredient costs."""
    lines = [
        "| without | data | seeds | metric | loss with | loss without | without against with (95%) |",
        "|---|---|--:|---|--:|--:|---|",
    ]
    for row in read("ablation.json").get("rows", []):
        for metric in METRICS_OF[row["set"]]:
            sides = [f"{row['losses'][metric][side]['loss_percent']:+.2f}%" for side in ("with", "without")]
            lines.append(
                f"| {row['question']} | {TITLES[row['set']]} | {len(row['seeds'])} | {METRICS[metric]} "
                f"| {sides[0]} | {sides[1]} | {loss_of(row['without'][metric])} |"
            )
    return "\n".join(lines) if len(lines) > 2 else MISSING


def on_disk() -> str:
    """Of each set, the smallest file that loses at most 1% of the teacher on validation messages; its test losses."""
    lines = ["| data | file | MB | times smaller | losses on test messages (95%) |", "|---|---|--:|--:|---|"]
    runs = [each for name in ("headline.json", "students.json") for each in read(name).get("sets", [])]
    for name in dict.fromkeys(each["set"] for each in runs):
        rows = [row for each in runs if each["set"] == name for row in each["rows"]]
        if (row := smallest(rows, METRICS_OF[name])) is None:
            continue
        teacher = next(r["size_bytes"] for r in rows if r["name"] == "PyTorch fp32")
        losses = "; ".join(f"{METRICS[m]} {loss_of(row['quality']['losses'][m])}" for m in METRICS_OF[name])
        lines.append(
            f"| {TITLES[name]} | {_title(row)} | {row['size_bytes'] / 1e6:.2f} "
            f"| {teacher / row['size_bytes']:.0f} | {losses} |"
        )
    return "\n".join(lines) if len(lines) > 2 else MISSING


def smallest(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> dict[str, Any] | None:
    """The smallest file whose validation loss is within SMALL_ENOUGH in every metric; None where none is."""
    fits = [
        row
        for row in rows
        if "validation_losses" in row
        and all(row["validation_losses"][m]["loss_percent"] <= SMALL_ENOUGH for m in metrics)
    ]
    return min(fits, key=lambda row: row["size_bytes"], default=None)


def _title(row: dict[str, Any]) -> str:
    return f"teacher, {row['name']}" if row["group"] == "teacher" else row["name"]


def _ratio(x: dict[str, float]) -> str:
    return f"{_three(x['ratio'])} ({_three(x['low'])} to {_three(x['high'])})"


def _three(x: float) -> str:
    """Three digits, more before the point."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def _range(found: Sequence[dict[str, float]]) -> str:
    """Smallest to largest ratio over the sets."""
    low, high = min(x["ratio"] for x in found), max(x["ratio"] for x in found)
    return _three(low) if _three(low) == _three(high) else f"{_three(low)} to {_three(high)}"


def _bound(x: dict[str, Any]) -> str:
    over = f", missed by {x['missed_by']:.2f}%" if x["missed_by"] else ""
    return f"bound {x['bound_percent']}%{over}"


def _met(kept: bool) -> str:
    return "met" if kept else "missed"
