"""Tables of docs/founding.md, made from benchmarks/results/founding.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "founding.json"


BASES = {"small": "2 layers x 128", "all-mpnet-base-v2": "all-mpnet-base-v2"}
REPORTED = {"everywhere 4": "-1.6%", "encoder 2, rest 256": "no loss", "everywhere 2": "collapses"}
LITERT_FORMS = {
    "fp32": "LiteRT fp32",
    "weights8": "LiteRT 8-bit weights",
    "dynamic8": "LiteRT dynamic 8-bit",
    "integer8": "LiteRT full integer",
}
LOSS_FIELDS = ("loss_percent", "low_percent", "high_percent")
PSEUDO = "pseudo (4 centres rebuilt as floats)"
FORM_2019 = ", founding form"


def _founding() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def _sets(found: dict[str, Any]) -> list[tuple[str, str]]:
    """(base, set) of everything measured, the small classifier first."""
    measured = dict.fromkeys((part["base"], part["set"]) for part in found["quality"].values())
    return sorted(measured, key=lambda pair: (list(BASES).index(pair[0]), pair[1]))


def _rows_of_seeds(parts: dict[str, Any], base: str, name: str, recipe: str) -> list[dict[str, Any]]:
    """One row a seed."""
    chosen = [part for part in parts.values() if (part["base"], part["set"]) == (base, name)]
    return [part["rows"][recipe] for part in chosen if recipe in part["rows"]]


def _loss_cell(rows: list[dict[str, Any]]) -> str:
    """Mean over seeds: loss, and the mean of the seeds' intervals."""
    if not rows:
        return "-"
    loss, low, high = (sum(row["loss"][k] for row in rows) / len(rows) for k in LOSS_FIELDS)
    return f"{loss:+.2f}% ({low:+.1f} to {high:+.1f})"


def findings() -> str:
    """What 2019 reported, and whether it holds in its own form of codes and in ours."""
    found = _founding()
    lines = [
        "| classifier, data | seeds | recipe | 2019 | loss of macro-F1 (95%) | bound | |",
        "|---|--:|---|---|--:|---|---|",
    ]
    for base, name in _sets(found):
        for x in found["findings"]:
            if (x["base"], x["set"]) != (base, name) or "verdict" not in x:
                continue
            plain = x["recipe"].removesuffix(FORM_2019)
            bound = (
                f"at most {x['bound_percent']:.0f}%" if "bound_percent" in x else f"over {x['collapse_percent']:.0f}%"
            )
            interval = f"{x['loss_percent']:+.2f}% ({x['low_percent']:+.1f} to {x['high_percent']:+.1f})"
            cells = [f"{BASES[base]}, {name}", x["seeds"], x["recipe"], REPORTED[plain], interval, bound, x["verdict"]]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    missing = [title for base, title in BASES.items() if base not in {base for base, _ in _sets(found)}]
    lines += ["", f"Not measured yet: {', '.join(missing)}."] if missing else []
    return "\n".join(lines)


def centres() -> str:
    """Macro-F1 and loss with k centres everywhere, and kilobytes of all weights."""
    found = _founding()
    lines = []
    for base, name in _sets(found):
        floats = _rows_of_seeds(found["quality"], base, name, "float")
        f1 = [row["intent_macro_f1"] for row in floats]
        lines += [
            "",
            f"**{BASES[base]}, {name}**: float macro-F1 {sum(f1) / len(f1):.4f} "
            f"({', '.join(f'{x:.4f}' for x in f1)}), {floats[0]['weight_bytes'] / 1e6:.2f} MB.",
            "",
            "| centres | 2019's form: loss | MB | a table a row, int8: loss | MB |",
            "|---|--:|--:|--:|--:|",
        ]
        recipes = [f"everywhere {k}" for k in (256, 64, 16, 8, 4, 2)] + ["encoder 2, rest 256"]
        for recipe in recipes:
            cells = []
            for form in (recipe + FORM_2019, recipe):
                rows = _rows_of_seeds(found["quality"], base, name, form)
                cells += [_loss_cell(rows), _mb(rows[0]["weight_bytes"]) if rows else "-"]
            lines.append(f"| {recipe} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def sensitivity() -> str:
    """k centres in one part, the other in float."""
    found = _founding()
    lines = [
        "| classifier, data | centres | in the encoder alone: loss | in the embeddings alone: loss |",
        "|---|--:|--:|--:|",
    ]
    for base, name in _sets(found):
        for k in (256, 16, 4, 2):
            cells = [
                _loss_cell(_rows_of_seeds(found["quality"], base, name, f"{part} {k} alone{FORM_2019}"))
                for part in ("encoder", "embeddings")
            ]
            lines.append(f"| {BASES[base]}, {name} | {k} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seen() -> str:
    """The findings of 2019 on training messages, beside the test messages."""
    found = _founding()
    lines = [
        "| classifier, data | recipe | loss on training messages | loss on test messages |",
        "|---|---|--:|--:|",
    ]
    for base, name in _sets(found):
        for recipe in REPORTED:
            cells = [
                _loss_cell(_rows_of_seeds(found.get(part, {}), base, name, recipe + FORM_2019))
                for part in ("seen", "quality")
            ]
            if cells[0] != "-":
                lines.append(f"| {BASES[base]}, {name} | {recipe} | {' | '.join(cells)} |")
    return "\n".join(lines)


def int8() -> str:
    """8 bits: ours and LiteRT's, loss and megabytes."""
    found = _founding()
    lines = [
        "| classifier, data | form | seeds | messages | loss of macro-F1 (95%) | MB |",
        "|---|---|--:|--:|--:|--:|",
    ]
    ours = {
        "int8, a scale a row": "Flyweight int8",
        "int8, scale and shift a matrix": "Flyweight int8, one scale and shift a matrix (2019)",
    }
    for base, name in _sets(found):
        title = f"{BASES[base]}, {name}"
        parts = [p for p in found["quality"].values() if (p["base"], p["set"]) == (base, name)]
        for recipe, label in ours.items():
            rows = _rows_of_seeds(found["quality"], base, name, recipe)
            cells = [
                title,
                label,
                len(rows),
                parts[0]["messages"]["test"],
                _loss_cell(rows),
                _mb(rows[0]["weight_bytes"]),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        asked = [p for p in found.get("litert", {}).values() if (p["base"], p["set"]) == (base, name)]
        for form, label in LITERT_FORMS.items():
            rows = _rows_of_seeds(found.get("litert", {}), base, name, form)
            if rows:
                cells = [title, label, len(rows), asked[0]["messages"], _loss_cell(rows), _mb(rows[0]["file_bytes"])]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def time() -> str:
    """Milliseconds, bytes and memory of every form, interleaved."""
    found = _founding().get("time", {})
    titles = {"small": "2 layers x 128", "bert-base": "BERT-base's size (12 x 768)"}
    lines = []
    for name, title in titles.items():
        if name not in found or not found[name]["rows"]:
            continue
        part = found[name]
        lines += [
            "",
            f"**{title}**, {part['tokens']} tokens, batch 1, one thread; {part['machine']['cpu']}, {part['engine']}; "
            f"{part['calls']} calls each, {part['load_average']:.0f} processes wanted a core.",
            "",
            "| form | ms | best | CPU ms | times PyTorch fp32 | times LiteRT dynamic | weights, MB | memory, MB |",
            "|---|--:|--:|--:|--:|--:|--:|--:|",
        ]
        for form, row in part["rows"].items():
            litert = form.startswith("LiteRT ")
            label = LITERT_FORMS[form.removeprefix("LiteRT ")] if litert else form.replace("pseudo", PSEUDO)
            cells = [label, *(f"{row[key]:.3g}" for key in ("p50_ms", "best_ms", "cpu_p50_ms"))]
            cells += [_times_cell(row["times"].get(reference)) for reference in ("PyTorch fp32", "LiteRT dynamic8")]
            lines.append(f"| {' | '.join(cells)} | {_mb(row['weight_bytes'])} | {row['memory_mb']:.1f} |")
    return "\n".join(lines).strip()


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.2f}"


def _times_cell(found: dict[str, float] | None) -> str:
    return "1" if found is None else f"{found['ratio']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
