"""How results are printed: data to stdout (tables, or JSON with --json), everything else to stderr."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from flyweight.measure.out_of_scope import OutOfScope
from flyweight.report.comparison import Row

PIPE_WIDTH = 100  # characters a line where stdout is no terminal
NARROWEST_TEXT = 12  # a column of words is not squeezed below this; a narrower terminal breaks the lines itself
NUMBER = re.compile(r"[+-]?\d[\d.,x%/ +-]*|-")
METRIC_NAMES = {"intent_accuracy": "accuracy", "intent_macro_f1": "macro-F1", "span_f1": "span F1"}

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Source = Annotated[
    str,
    typer.Argument(
        help="A Rasa NLU, CSV, TSV, JSON or CoNLL file, a folder of them or with seq.in, hub:owner/name, 'assistant'."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what --out already holds.")]
TextColumn = Annotated[str | None, typer.Option(help="Column of the text, where a table names it unusually.")]
IntentColumn = Annotated[str | None, typer.Option(help="Column of the intent, likewise.")]


def note(text: str) -> None:
    """A line for the person, on stderr."""
    print(text, file=sys.stderr)


def print_json(value: object) -> None:
    """JSON on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout. Numbers are never cut, words fold, a column of nothing ("-" in all rows) is left out."""
    if title:
        print(title)
    shown = [i for i in range(len(columns)) if i == 0 or any(row[i] != "-" for row in rows)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    needed = 0
    for i in shown:
        cells = [row[i] for row in rows]
        if i and all(NUMBER.fullmatch(cell) for cell in cells):
            table.add_column(columns[i], justify="right", no_wrap=True)
            needed += 2 + max(len(line) for cell in [columns[i], *cells] for line in cell.splitlines())
        else:
            table.add_column(columns[i], overflow="fold")
            needed += 2 + NARROWEST_TEXT
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, markup=False, emoji=False, highlight=False)
    console.width = max(console.width, needed)
    console.print(table)


def comparison_table(rows: Sequence[Row], title: str = "") -> None:
    """Models side by side: what `demo` and `evaluate` print."""
    columns = ["model", "macro-F1", "accuracy", "span F1", "flips", "MB", "ms", "speed"]
    print_table(columns, [_cells(row) for row in rows], title)


def _cells(row: Row) -> list[str]:
    q = row.quality
    return [
        f"{row.name} ({row.engine})",
        f"{q.intent_macro_f1:.4f}" if row.scores_intents else "-",
        f"{q.intent_accuracy:.4f}" if row.scores_intents else "-",
        f"{q.span_f1:.4f}" if row.scores_spans else "-",
        "-" if q.n_flips is None else f"{q.n_flips}",
        "-" if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f}",
        "-" if row.latency is None else f"{row.latency.mean_ms:.2f}",
        "-" if row.speedup is None else f"{row.speedup:.2f}x",
    ]


def loss_text(metric: str, loss: Mapping[str, float]) -> str:
    """A loss and its interval in one line: `loss of macro-F1 +0.516% (95% interval -1.022% to +2.142%)`."""
    found, low, high = (loss[k] for k in ("loss_percent", "low_percent", "high_percent"))
    return f"loss of {METRIC_NAMES[metric]} {found:+.3f}% (95% interval {low:+.3f}% to {high:+.3f}%)"


def out_of_scope_text(found: OutOfScope) -> str:
    """Out-of-scope detection in one line."""
    return (
        f"out of scope ({found.n_out_of_scope} of {found.n_out_of_scope + found.n_in_scope} messages): "
        f"AUROC {found.auroc:.4f}, recall {found.recall_at_5_percent_fpr:.4f} at 5% false positives; "
        f"answered so: {found.found:.4f} of them, {found.false_alarms:.4f} of the others"
    )


def entities_text(entities: Sequence[dict[str, Any]]) -> str:
    """Entities of a parse result in one line: `city:departure='Berlin'  date='Friday'`."""
    names = [":".join(e[k] for k in ("entity", "role", "group") if e.get(k)) for e in entities]
    return "  ".join(f"{name}={e['value']!r}" for name, e in zip(names, entities, strict=True))


def frame_text(frame: dict[str, Any]) -> str:
    """An answer in one line: intent, then entity spans."""
    spans = " ".join(f"{label}[{start}:{end}]" for start, end, label in frame["entities"])
    return f"{frame['intent']} {spans}".strip()
