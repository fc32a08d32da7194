"""Tables of docs/pruning.md, from sparse, unstructured, heads_neurons, structured, widths and deep_compression.json."""

from __future__ import annotations

import re
from typing import Any

from quantization_tables import BASES, METRICS, SHAPES, TITLES, loss_of, read

MISSING = "Not measured yet."
SPARSITIES = (50, 70, 80, 90)
WHATS = {"ffn": "neurons of an FFN", "heads": "heads of a layer", "hidden": "hidden size"}


def sparse() -> str:
    """Times the speed of dense int8, by kind and sparsity."""
    runs = read("sparse.json").get("runs", [])
    if not runs:
        return MISSING
    lines = [f"| model, tokens | weights | {' | '.join(f'{p}%' for p in SPARSITIES)} |", "|---|---|" + "--:|" * 4]
    for run in runs:
        for case in run["cases"]:
            rows = {row["name"]: row for row in case["rows"]}
            where = f"{SHAPES[run['model']]}, {case['tokens']}"
            kinds = dict.fromkeys(name.rpartition(", ")[0] for name in rows if not name.startswith("dense"))
            for kind in kinds:
                cells = [rows.get(f"{kind}, {p}%") for p in SPARSITIES]
                shown = [f"{row['ratio']:.2f}" if row else "-" for row in cells]
                lines.append(f"| {where} | {kind} | {' | '.join(shown)} |")
            for name in ("dense 4 bits", "dense 2 bits"):
                lines.append(f"| {where} | {name} | {rows[name]['ratio']:.2f} | | | |")
    return "\n".join(lines)


def unstructured() -> str:
    """Loss of pruned weights after int8, with minutes of the pruning; recipes that are measured."""
    found = read("unstructured.json")
    lines = ["| data | recipe | metric | loss (95%) | bound | | minutes |", "|---|---|---|--:|--:|---|--:|"]
    for run in found.get("runs", []):
        minutes = {row["name"]: row.get("minutes") for row in run["rows"]}
        for x in found["losses"]:
            if (x["set"], x["base"]) == (run["set"], run["base"]) and x["file"].endswith(", int8") and run["seed"] == 0:
                spent = minutes.get(x["file"].removesuffix(", int8"))
                lines.append(
                    f"| {BASES[run['base']]}, {TITLES[x['set']]} | {x['file']} | {METRICS[x['metric']]} | {loss_of(x)} "
                    f"{_judged(x)} | {'-' if spent is None else f'{spent:.1f}'} |"
                )
    return "\n".join(lines) if len(lines) > 2 else MISSING


def structures(kind: str) -> str:
    """Rows of heads_neurons.json whose names begin as the pattern `kind` says: losses, time, bytes."""
    lines = [
        "| data | recipe | losses (95%) | flips | times as fast | MB | minutes |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for run in read("heads_neurons.json").get("runs", []):
        for row in run["rows"]:
            if re.match(kind, row["name"]):
                losses = "; ".join(f"{METRICS[k]} {loss_of(x)}" for k, x in row["test"]["losses"].items())
                faster = row.get("speedup_median_per_call")
                lines.append(
                    f"| {BASES[run['base']]}, {TITLES[run['set']]}, seed {run['seed']} | {row['name']} | {losses} "
                    f"| {row['test']['n_flips']} | {'-' if faster is None else f'{faster:.2f}'} "
                    f"| {row['size_bytes'] / 1e6:.1f} | {row['minutes']:.1f} |"
                )
    return "\n".join(lines) if len(lines) > 2 else MISSING


def structured() -> str:
    """Structured pruning to a speed: loss, bound, times the speed of dense int8."""
    found = read("structured.json")
    lines = [
        "| data | recipe | metric | loss (95%) | bound | | times as fast | minutes |",
        "|---|---|---|--:|--:|---|--:|--:|",
    ]
    for run in found.get("runs", []):
        rows = {row["name"]: row for row in run["rows"] if "times_faster" in row}
        for x in found["losses"]:
            row = rows.get(x["file"])
            if (x["set"], x["base"]) == (run["set"], run["base"]) and row is not None and run["seed"] == 0:
                lines.append(
                    f"| {BASES[run['base']]}, {TITLES[x['set']]} | {x['file']} | {METRICS[x['metric']]} | {loss_of(x)} "
                    f"{_judged(x)} | {row['times_faster_median']:.2f} | {row['minutes']:.1f} |"
                )
    return "\n".join(lines) if len(lines) > 2 else MISSING


def widths() -> str:
    """Milliseconds of an awkward width over those of the next round one."""
    lines = ["| model | what | width, next round one | 8 tokens | 16 tokens |", "|---|---|---|--:|--:|"]
    for run in read("widths.json") or []:
        cells: dict[tuple[str, int, int], dict[int, float]] = {}
        for row in run["rows"]:
            cells.setdefault((row["what"], row["odd"], row["round"]), {})[row["tokens"]] = row["ratio"]
        for (what, odd, whole), by in cells.items():
            shown = " | ".join(f"{by[tokens]:.2f}" if tokens in by else "-" for tokens in (8, 16))
            lines.append(f"| {SHAPES[run['model']]} | {WHATS.get(what, what)} | {odd}, {whole} | {shown} |")
    return "\n".join(lines) if len(lines) > 2 else MISSING


def chain() -> str:
    """Deep Compression's chain: megabytes link by link."""
    lines = [
        "| data | recipe | MB after each technique | MB packed | times smaller | bits a weight: file, packed, entropy "
        "| losses (95%) | ms |",
        "|---|---|---|--:|--:|---|---|--:|",
    ]
    for run in read("deep_compression.json").get("runs", []):
        for row in run["rows"]:
            if (links := row.get("chain")) is None:
                continue
            bits = ", ".join(f"{links['bits_a_weight'][k]:.2f}" for k in ("file", "packed", "entropy"))
            after = ", ".join(f"{name} {n / 1e6:.1f}" for name, n in links["file_bytes"].items())
            losses = "; ".join(
                f"{METRICS[k]} {loss_of(x)}" for k, x in row["quality"]["losses"].items() if k in METRICS
            )
            lines.append(
                f"| {BASES[run['base']]}, {TITLES[run['set']]} | {row['name']} | {after} "
                f"| {links['packed_bytes'] / 1e6:.1f} | {links['times_smaller']:.1f} | {bits} | {losses} "
                f"| {row['latency']['p50_ms']:.2f} |"
            )
    return "\n".join(lines) if len(lines) > 2 else MISSING


def _judged(x: dict[str, Any]) -> str:
    """The cells of bound and verdict."""
    return "| | " if x["bound_percent"] is None else f"| {x['bound_percent']}% | {x['verdict']}"
