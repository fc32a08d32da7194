"""survival: which heads and neurons of a pruned model are left (needs the workshop: PyTorch)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flyweight.cli import show
from flyweight.errors import MissingExtraError

if TYPE_CHECKING:
    from flyweight.analyse.survival import Survival

SHADES = " ░▒▓█"  # share of a bin of neurons that survived: none, up to a third, two thirds, most, all


def survival(
    model: Annotated[Path, typer.Argument(help="A pruned model: a folder or a .fly file.")],
    parent: Annotated[
        Path | None, typer.Option(help="The dense model's folder: shows whether the strong ones survived.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for survival.json and survival.png.")] = Path("survival"),
    as_json: show.Json = False,
) -> None:
    """Show which heads and neurons survived structural pruning, layer by layer of the dense model.

    [bold]Examples[/bold]

    flyweight survival small.fly

    flyweight survival small.fly --parent bot --out report --json
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("torch", "workshop", "showing what survived") from error
    from flyweight.analyse.survival import draw
    from flyweight.analyse.survival import survival as look
    from flyweight.model.nlu import NLUModel

    found = look(model, None if parent is None else NLUModel.load(parent))
    out.mkdir(parents=True, exist_ok=True)
    title = f"{model}: {len(found.survivors.layers)} of {len(found.survivors.dense)} layers"
    picture = draw(found, title, out / "survival.png")
    result = {"model": str(model), "parent": None if parent is None else str(parent), **found.to_dict()}
    (out / "survival.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if as_json:
        show.print_json(result)
        return
    print(title)
    for line in lines(found):
        print(line)
    show.note(f"{picture} shows the same; survival.json beside it names every head and neuron")


def lines(found: Survival) -> list[str]:
    """A line a layer of the dense model: its heads one by one, its neurons in bins, and how many there are."""
    from flyweight.analyse.survival import HEADS, NEURONS, neuron_bins

    shown = []
    wide = max((len(there) for there in found.kept(HEADS)), default=0)
    for i, (heads, bins) in enumerate(zip(found.kept(HEADS), neuron_bins(found), strict=True)):
        if i not in found.survivors.layers:
            shown.append(f"layer {i:2}  gone")
            continue
        rows = [found.shares(kind)[i] for kind in (HEADS, NEURONS)]
        counts = [f"{row['kept']} of {row['of']} {kind}" for row, kind in zip(rows, (HEADS, NEURONS), strict=True)]
        strong = [f"{100 * row['strong']:.0f}%" for row in rows if "strong" in row]
        of_strong = f"; of the stronger half {' and '.join(strong)}" if strong else ""
        marks = "".join("█" if there else "·" for there in heads).ljust(wide)
        shades = "".join(SHADES[step] for step in _steps(bins.tolist()))
        shown.append(f"layer {i:2}  {marks}  |{shades}|  {', '.join(counts)}{of_strong}")
    return shown


def _steps(shares: list[float]) -> list[int]:
    """0 none, 4 all, 1 to 3 thirds between; bins without neurons count as none."""
    return [0 if not share > 0 else 4 if share == 1 else 1 + min(int(3 * share), 2) for share in shares]
