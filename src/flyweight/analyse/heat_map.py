"""The sensitivity of a model as a picture: a panel a measure, a row a part, a column a width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flyweight.analyse.sensitivity import Cell, Sensitivity
from flyweight.errors import MissingExtraError

KL_RANGE = (1e-4, 1.0)  # nats, ends of the colours: rounding noise, and answers that have little to do with the model's
LOSS_RANGE = (0.1, 20.0)  # percent, likewise
METRIC_TITLES = {"intent_macro_f1": "macro-F1 lost, %", "span_f1": "span F1 lost, %"}


def warmth(value: float, low: float, high: float) -> float:
    """0 (at most `low`) to 1 (at least `high`), by the logarithm: small losses are told apart."""
    return float(np.clip(np.log(max(value, low) / low) / np.log(high / low), 0.0, 1.0))


def draw(found: Sensitivity, title: str, path: Path) -> Path:
    """Write a PNG. Errors: MissingExtraError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "workshop", "drawing the heat map") from error
    panels = _panels(found)
    height = 2.0 + 0.32 * len(found.parts)
    figure = Figure(figsize=(2.4 + 3.0 * len(panels), height), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for i, (ax, (name, colour, text)) in enumerate(zip(axes, panels, strict=True)):
        _panel(ax, found, name, colour, text)
        if i == 0:
            ax.set_yticks(range(len(found.parts)), found.parts)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("bits of the part's weights (its activations int8, every other part float)", fontsize=9)
    FigureCanvasAgg(figure)
    figure.savefig(path)
    return path


Panel = tuple[str, Callable[[Cell], float], Callable[[Cell], str]]  # title, warmth of a cell, what is written in it


def _panels(found: Sensitivity) -> list[Panel]:
    def loss(metric: str) -> Panel:
        return (
            METRIC_TITLES[metric],
            lambda cell: warmth(found.loss_percent(cell, metric), *LOSS_RANGE),
            lambda cell: loss_text(found.loss_percent(cell, metric)),
        )

    def flips(cell: Cell) -> float:
        return warmth(100 * cell.n_flips / found.n_messages, *LOSS_RANGE)

    return [
        (
            "KL to the float model, 1/1000 nats",
            lambda cell: warmth(cell.kl, *KL_RANGE),
            lambda cell: kl_text(1000 * cell.kl),
        ),
        *(loss(metric) for metric in found.metrics),
        (f"answers changed, of {found.n_messages}", flips, lambda cell: str(cell.n_flips)),
    ]


def _panel(
    ax: Any, found: Sensitivity, name: str, colour: Callable[[Cell], float], text: Callable[[Cell], str]
) -> None:
    """One measure: its colour and text in every cell."""
    cells = [[found.cell(part, bits) for bits in found.bits] for part in found.parts]
    warm = np.array([[colour(cell) for cell in row] for row in cells])
    panel(ax, name, warm, list(map(str, found.bits)))
    for y, row in enumerate(cells):
        for x, cell in enumerate(row):
            shade = "white" if warm[y, x] > 0.65 else "black"
            ax.text(x, y, text(cell), ha="center", va="center", fontsize=8, color=shade)


def panel(ax: Any, title: str, warm: np.ndarray, columns: Sequence[str], line: float = 1.5) -> Any:
    """Cells coloured by warm (rows, columns), 0 to 1, white lines between them; NaN is grey. Gives their image."""
    ax.set_facecolor("#dddddd")
    image = ax.imshow(warm, cmap="YlOrRd", vmin=0, vmax=1, aspect="auto")
    ax.set_title(title, fontsize=10)
    ax.set_xticks(range(len(columns)), columns)
    ax.tick_params(length=0, labelsize=9)
    ax.set_xticks(np.arange(warm.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(warm.shape[0] + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=line)
    ax.tick_params(which="minor", length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def loss_text(percent: float) -> str:
    """`0.35`, `12.1`, and `0` for nothing at all."""
    return f"{percent:.1f}" if abs(percent) >= 10 else f"{percent:.2f}" if round(percent, 2) else "0"


def kl_text(kl: float) -> str:
    """Two digits at least, none behind the point from 10 on: `3900`, `25`, `1.4`, `0.02`, `0`."""
    if kl >= 10:
        return f"{kl:.0f}"
    return f"{kl:.1f}" if kl >= 1 else f"{kl:.2f}" if kl >= 0.005 else "0"
