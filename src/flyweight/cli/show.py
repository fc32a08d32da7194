"""How results are printed: data to stdout (tables, or JSON with --json), everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flyweight.report.comparison import Row

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text, where a table names it unusually.")]
IntentColumn = Annotated[str | None, typer.Option(help="Column of the intent, likewise.")]


def note(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr)


def print_json(value: object) -> None:
    """JSON on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout; columns of numbers are right-aligned."""
    table = Table(title=title or None, title_justify="left", header_style="bold")
    for i, column in enumerate(columns):
        numbers = all(row[i].rstrip("x%").lstrip("+-").replace(".", "", 1).isdigit() or row[i] == "-" for row in rows)
        table.add_column(column, justify="right" if numbers else "left", no_wrap=i == 0)
    for row in rows:
        table.add_row(*row)
    wide = None if sys.stdout.isatty() else 160
    Console(width=wide).print(table)


def comparison_table(rows: Sequence[Row], title: str = "") -> None:
    """Models side by side: what `demo`, `evaluate` and `bench` print."""
    columns = ["model", "runs in", "macro-F1", "accuracy", "span F1", "flips", "MB", "ms/message", "speed"]
    print_table(columns, [_cells(row) for row in rows], title)


def _cells(row: Row) -> list[str]:
    q = row.quality
    return [
        row.name,
        row.engine,
        f"{q.intent_macro_f1:.4f}",
        f"{q.intent_accuracy:.4f}",
        f"{q.span_f1:.4f}" if q.n_gold_spans and q.n_predicted_spans else "-",
        "-" if q.n_flips is None else f"{q.n_flips}",
        "-" if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f}",
        "-" if row.latency is None else f"{row.latency.mean_ms:.2f}",
        "-" if row.speedup is None else f"{row.speedup:.2f}x",
    ]


def entities_text(entities: Sequence[dict[str, Any]]) -> str:
    """Entities of a parse result in one line: `city:departure='Berlin'  date='Friday'`."""
    names = [":".join(e[k] for k in ("entity", "role", "group") if e.get(k)) for e in entities]
    return "  ".join(f"{name}={e['value']!r}" for name, e in zip(names, entities, strict=True))


def frame_text(frame: dict[str, Any]) -> str:
    """An answer in one line: intent, then entity spans."""
    spans = " ".join(f"{label}[{start}:{end}]" for start, end, label in frame["entities"])
    return f"{frame['intent']} {spans}".strip()
