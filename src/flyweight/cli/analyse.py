"""sensitivity: which parts of a model bear few bits (needs the workshop: PyTorch)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flyweight.cli import show
from flyweight.cli.build import model_folder
from flyweight.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from flyweight.analyse.sensitivity import Cell, Sensitivity

WIDTHS = (8, 7, 6, 5, 4, 3, 2, 1)
# Pale to dark on a white ground with black letters, then white ones: readable on dark terminals too.
SHADES = ("#ffffe5", "#fff3b8", "#fee187", "#fec561", "#fda245", "#fc7334", "#ee3922", "#c90823", "#800026")
LIGHT_TEXT_FROM = 6


def sensitivity(
    model: Annotated[Path, typer.Argument(help="A model folder (what train wrote).")],
    data: Annotated[str, typer.Argument(help="The data it was trained on: its validation messages are asked.")],
    bits: Annotated[str, typer.Option(help="Bits of a weight to try, 1 to 8, with commas.")] = "8,4,3,2,1",
    messages: Annotated[int, typer.Option(min=1, help="At most about so many, stratified by intent.")] = 500,
    out: Annotated[
        Path, typer.Option(help="Folder for sensitivity.json, sensitivity.png, and the cells already measured.")
    ] = Path("sensitivity"),
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    as_json: show.Json = False,
) -> None:
    """Quantize one part at a time and show what it does to the answers. Ctrl-C is safe: the same command goes on.

    [bold]Examples[/bold]

    flyweight sensitivity bot nlu.yml

    flyweight sensitivity bot nlu.yml --bits 4,2 --out report --json
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("torch", "workshop", "measuring sensitivity") from error
    from flyweight.analyse.heat_map import draw
    from flyweight.analyse.sensitivity import sensitivity as measure
    from flyweight.data.load import load_data, recorded_split
    from flyweight.data.splits import sample
    from flyweight.receipt import measured_messages, refuse_strangers

    widths = _widths(bits)
    parent = model_folder(model)
    split = recorded_split(parent.card.split)
    asked, part = measured_messages(load_data(data, **split, text_column=text_column, intent_column=intent_column))
    refuse_strangers(parent, asked)
    found = measure(parent, sample(asked, messages), bits=widths, folder=out)
    part = {"train": "training"}.get(part, part)
    # A packed model is measured as the float model that it decodes to.
    packed = any(m.form is not None for _, m, _ in parent.matrices())
    shown = f"{model} (packed; its weights decoded to floats)" if packed else str(model)
    title = f"{shown} on {found.n_messages} {part} messages of {data}: {_scores(found)}"
    out.mkdir(parents=True, exist_ok=True)
    result = {"model": str(model), "decoded": packed, "data": data, "asked": part, **found.to_dict()}
    picture = draw(found, title, out / "sensitivity.png")
    (out / "sensitivity.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        show.print_json(result)
        return
    print_heat_map(found, title)
    show.note(f"{picture} and sensitivity.json beside it hold the same and the divergences")


def print_heat_map(found: Sensitivity, title: str) -> None:
    """A row a part; for each width the losses in percent and the number of changed answers, coloured by KL."""
    names = [show.METRIC_NAMES[m] for m in found.metrics]
    print(title)
    print(
        f"in each cell: {''.join(f'{name} lost in %, ' for name in names)}answers changed; colour: KL, 0.0001 to 1 nats"
    )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, header_style="bold")
    columns = [_column(found, bits) for bits in found.bits]
    table.add_column("part", no_wrap=True)
    for bits in found.bits:
        table.add_column(f"{bits} bits " if bits > 1 else "1 bit ", justify="right", no_wrap=True)
    for y, part in enumerate(found.parts):
        cells = [
            Text(texts[y], style=_style(found.cell(part, b))) for b, texts in zip(found.bits, columns, strict=True)
        ]
        table.add_row(f"{part}  ", *cells)
    console = Console(
        width=None if sys.stdout.isatty() else show.PIPE_WIDTH, markup=False, emoji=False, highlight=False
    )
    needed = max(map(len, found.parts)) + 2 + sum(len(texts[0]) + 1 for texts in columns)
    console.width = max(console.width, needed)
    console.print(table)


def _column(found: Sensitivity, bits: int) -> list[str]:
    """What stands in the cells of one width, part by part, number under number."""
    cells = [found.cell(part, bits) for part in found.parts]
    numbers = [
        [f"{round(found.loss_percent(cell, metric), 1) + 0.0:.1f}" for cell in cells] for metric in found.metrics
    ]
    numbers.append([str(cell.n_flips) for cell in cells])
    wide = [max(map(len, column)) for column in numbers]
    return [f"  {' '.join(x.rjust(n) for x, n in zip(row, wide, strict=True))} " for row in zip(*numbers, strict=True)]


def _style(cell: Cell) -> str:
    from flyweight.analyse.heat_map import KL_RANGE, warmth

    shade = round(warmth(cell.kl, *KL_RANGE) * (len(SHADES) - 1))
    return f"{'white' if shade >= LIGHT_TEXT_FROM else 'black'} on {SHADES[shade]}"


def _scores(found: Sensitivity) -> str:
    """The float model's scores in words."""
    return ", ".join(f"{show.METRIC_NAMES[m]} {getattr(found, m):.4f}" for m in found.metrics) or "nothing to score"


def _widths(text: str) -> list[int]:
    """Widths in the order given. Errors: ConfigError."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = [0]
    if not set(found) <= set(WIDTHS) or len(set(found)) < len(found):
        raise ConfigError(f"--bits is '{text}'; allowed: whole numbers from 1 to 8 with commas, each once, as in 8,4,2")
    return found
