"""suggest: shapes of students for a time, each with its recipe (needs the workshop: PyTorch)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flyweight.cli import show
from flyweight.cli.build import model_folder, workshop


def suggest(
    model: Annotated[Path, typer.Argument(help="A model folder (what train wrote).")],
    data: Annotated[str, typer.Argument(help="The data it was trained on.")],
    target_ms: Annotated[
        float | None, typer.Option(help="Milliseconds a message in the engine, int8, one thread, without tokenizer.")
    ] = None,
    speedup: Annotated[
        float | None, typer.Option(help="Times as fast as the model itself in int8; 4 where no time is given.")
    ] = None,
    sensitivity: Annotated[
        Path | None, typer.Option(help="A sensitivity.json: 4 bits are proposed where they cost next to nothing.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder for suggest.json, a recipe a student, and what is measured already.")
    ] = Path("suggest"),
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    as_json: show.Json = False,
) -> None:
    """Propose students for a time, from what the model's parts are worth. Ctrl-C is safe: the same command goes on.

    [bold]Examples[/bold]

    flyweight suggest bot nlu.yml --speedup 8

    flyweight suggest bot nlu.yml --target-ms 0.2 --out students
    """
    workshop()
    from flyweight.analyse.suggest import suggest as propose
    from flyweight.data.load import load_data, recorded_split
    from flyweight.receipt import measured_messages, refuse_strangers
    from flyweight.recipe import Recipe
    from flyweight.techniques import TECHNIQUES
    from flyweight.techniques.room import technique

    parent = model_folder(model)
    split = recorded_split(parent.card.split)
    messages = load_data(data, **split, text_column=text_column, intent_column=intent_column)
    refuse_strangers(parent, measured_messages(messages)[0])
    found, known = propose(
        parent, messages, target_ms=target_ms, speedup=speedup, sensitivity=sensitivity, folder=str(out)
    )
    rows, written = [], []
    for s in found:
        steps = [technique(TECHNIQUES, name, settings) for step in s.steps for name, settings in step.items()]
        path = out / f"{s.name}.yml"
        path.write_text(Recipe(tuple(steps), f"{s.reason}; {s.shape}").to_yaml(), encoding="utf-8")
        written.append(s.to_dict() | {"recipe": str(path)})
        rows.append([s.name, f"{s.predicted_ms:.4g}", f"{s.speedup:.2f}x", s.shape, s.reason])
    vocabulary = {"tokens_used": known.used, "tokens": known.of}
    result = {"model": str(model), "data": data, "vocabulary": vocabulary, "students": written}
    (out / "suggest.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        show.print_json(result)
        return
    show.print_table(
        ["student", "ms", "speed", "shape", "why"], rows, f"{model}: students, times of this machine's engine"
    )
    show.note(f"{known.used} of {known.of} tokens occur in the training messages: vocabulary drops rare others")
    show.note(
        f"their recipes lie in {out}: flyweight compress {model} {data} --recipe {out}/{found[0].name}.yml --out ..."
    )
