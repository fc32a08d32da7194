"""compress, recipes: apply techniques one after the other, and what is shipped of such lists."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from flyweight.cli import receipts, show
from flyweight.cli.build import Seed, check_out, model_folder, workshop
from flyweight.errors import ConfigError, FlyweightError


def compress(
    model: Annotated[Path, typer.Argument(help="A model folder (what train wrote).")],
    data: Annotated[str, typer.Argument(help="The data it was trained on, or other messages of the same labels.")],
    out: Annotated[Path, typer.Option(help="The .fly file, or a folder, to compress further.")],
    technique: Annotated[
        list[str] | None,
        typer.Option(
            "--technique", "-t", metavar="NAME[:SETTING=...]", help="int8, codebook, codebook:encoder=4 ...; in order."
        ),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Instead of --technique: a name that flyweight recipes lists, or a YAML file.")
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for what is finished; it stays, and other runs use what is equal in it."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from an interrupted run although the recipe is another one now.")
    ] = False,
    seed: Seed = 0,
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    overwrite: show.Overwrite = False,
    as_json: show.Json = False,
) -> None:
    """Apply techniques, measure each step on the written file, and export. Ctrl-C is safe: the same command goes on.

    Finished techniques and trainings are kept meanwhile beside --out, in the hidden folder .NAME.work, or in --work.

    [bold]Examples[/bold]

    flyweight compress bot nlu.yml --technique int8 --out bot.fly

    flyweight compress bot nlu.yml --recipe fast-100x --work work --out fast.fly
    """
    workshop()
    from flyweight.data.load import load_data, recorded_split
    from flyweight.export.fly import save
    from flyweight.receipt import all_worse
    from flyweight.recipe import Recipe
    from flyweight.recipe import compress as run
    from flyweight.stages import worth_keeping

    if (technique is None) == (recipe is None):
        raise ConfigError("give either --technique (once or more) or --recipe")
    if work is not None and resume:
        raise ConfigError("--resume is given with --work, where any recipe may go on anyway; leave it out")
    check_out(out, model, "model that is to be compressed", overwrite)
    steps = Recipe.load(recipe) if recipe else Recipe.parse(technique or [])
    teacher = model_folder(model)
    split = recorded_split(teacher.card.split)
    found = load_data(data, **split, text_column=text_column, intent_column=intent_column)
    folder = work or out.resolve().with_name(f".{out.resolve().name}.work")
    n, made = len(steps.techniques), list[dict[str, Any]]()

    def each(number: int, receipt: dict[str, Any], kept: bool) -> None:
        made.append(receipt)
        if n > 1 or kept:
            show.note(receipts.line(number, n, receipt, kept))

    try:
        small = run(teacher, found, steps, seed=seed, folder=folder, resume=resume if work is None else None, each=each)
    except FlyweightError:
        if work is None and not worth_keeping(folder):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    written = save(small, out)
    if work is None:  # only now: until the file is written, a training is worth keeping
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        show.print_json({"file": str(written), "receipts": made})
    else:
        part = {"train": "training"}.get(made[-1]["part"], made[-1]["part"])
        title = f"{written}: measured on {made[-1]['quality']['n_messages']} {part} messages"
        receipts.print_receipts(made, bool(small.labels.entity_labels), title)
    for worse in receipts.worse_lines(made):
        show.note(worse)
    if not as_json and made[-1]["latency_ms"] >= made[-1]["parent_ms"] and not all_worse(made[-1]):
        show.note(_slow_note(made[-1]["engine"]))


def _slow_note(engine: str) -> str:
    """Why a file may be no faster than its parent. engine: as a receipt has it."""
    found = f"note: on this machine the file, run by {engine}, is no faster than its parent in PyTorch; it is smaller."
    if engine == "numpy":
        return f"{found} The reference is made for checking, not for speed; flyweight doctor says why it runs."
    if engine == "engine scalar":
        return f"{found} The scalar level is what the others are checked by; flyweight doctor says which this CPU has."
    return found


def recipes(
    name: Annotated[str | None, typer.Argument(help="Print this one's YAML, to be changed as you like.")] = None,
    as_json: show.Json = False,
) -> None:
    """List the shipped recipes: what compress --recipe NAME does.

    [bold]Examples[/bold]

    flyweight recipes

    flyweight recipes fast-100x > mine.yml
    """
    workshop()
    from flyweight.recipe import Recipe, name_of, shipped

    files = shipped()
    if name is not None and name not in files:
        raise ConfigError(f"recipe '{name}' is not shipped; allowed: {', '.join(files)}")
    if name is not None and not as_json:
        print(files[name].read_text(encoding="utf-8"), end="")
        return
    loaded = {of: Recipe.load(of) for of in files if name in (None, of)}
    if as_json:
        show.print_json(
            [
                {
                    "name": of,
                    "description": found.description,
                    "techniques": [{name_of(step): vars(step)} for step in found.techniques],
                }
                for of, found in loaded.items()
            ]
        )
        return
    for of, found in loaded.items():
        print(f"{of}: {', '.join(name_of(step) for step in found.techniques)}\n    {found.description}")
