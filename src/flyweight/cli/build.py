"""train, import, compress, demo: verbs that make models (they need the workshop: PyTorch)."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from flyweight.cli import receipts, show
from flyweight.errors import ConfigError, FlyweightError, MissingExtraError

if TYPE_CHECKING:
    from flyweight.model.nlu import Pooling
    from flyweight.training.logits import Teacher

Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of whatever is random: splits, new weights ...")]
FallbackRate = Annotated[
    float,
    typer.Option(help="Share of messages in scope that may be answered nlu_fallback; fits a threshold, 0 for none."),
]


def train(
    data: show.Source,
    out: Annotated[Path, typer.Option(help="Folder for the trained model (and its checkpoint meanwhile).")],
    base: Annotated[str, typer.Option(help="minilm, small, a checkpoint folder, or a Hub id.")] = "minilm",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training messages; by default chosen.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Messages a step.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longer messages lose their tail.")] = 128,
    pooling: Annotated[str, typer.Option(help="mean, cls, cls+tanh, cls+relu or cls+gelu.")] = "mean",
    teacher: Annotated[
        list[Path] | None,
        typer.Option(help="Learn from its logits too: a model folder, a .fly, or a .jsonl of logits; several as one."),
    ] = None,
    fallback_rate: FallbackRate = 0.0,
    test: Annotated[float, typer.Option(help="Share held out for testing, where the data bring no test part.")] = 0.2,
    validation: Annotated[float, typer.Option(help="Share held out for choosing the epoch, likewise.")] = 0.1,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    overwrite: show.Overwrite = False,
    as_json: show.Json = False,
) -> None:
    """Train a teacher: intents and entities together. Ctrl-C is safe: the same command goes on.

    [bold]Examples[/bold]

    flyweight train nlu.yml --out bot

    flyweight train banking77/ --base minilm --epochs 8 --out teacher
    """
    _workshop()
    from flyweight.data.load import load_data
    from flyweight.measure.quality import evaluate
    from flyweight.training.teacher import default_settings
    from flyweight.training.teacher import train as train_teacher

    if (out / "config.json").exists() and not overwrite:
        raise ConfigError(f"{out} already holds a model; choose another --out, or add --overwrite")
    given: dict[str, Any] = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size}
    settings = replace(default_settings(base), seed=seed, **{k: v for k, v in given.items() if v is not None})
    found = load_data(
        data, test=test, validation=validation, seed=seed, text_column=text_column, intent_column=intent_column
    )
    for line in found.notes:
        show.note(f"note: {line}")
    parts = f"{len(found.train)} training, {len(found.validation)} validation, {len(found.test)} test messages"
    show.note(f"{parts}; {len(found.intents)} intents, {len(found.entity_labels)} entity types")
    model = train_teacher(
        found,
        base,
        settings,
        pooling=cast("Pooling", pooling),
        max_tokens=max_tokens,
        device=device,
        fallback_rate=fallback_rate,
        teacher=_teacher(teacher) if teacher else None,
        out=out,
    )
    result = {"model": str(out), **model.card.steps[-1]}
    if found.test:
        quality = evaluate(model, found.test)
        result |= {
            "test": {k: v for k, v in quality.to_dict().items() if v is not None and k not in ("flips", "losses")}
        }
    if as_json:
        show.print_json(result)
        return
    print(f"{out}: best epoch {result['best_epoch']}, validation F1 {result['validation_f1']}")
    if found.test:
        has_spans = found.entity_labels and quality.n_gold_spans + quality.n_predicted_spans > 0
        spans = f", span F1 {quality.span_f1:.4f}" if has_spans else ""
        print(
            f"test ({len(found.test)} messages): macro-F1 {quality.intent_macro_f1:.4f}, "
            f"accuracy {quality.intent_accuracy:.4f}{spans}"
        )


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
    recipe: Annotated[Path | None, typer.Option(help="A YAML recipe instead of --technique.")] = None,
    seed: Seed = 0,
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    overwrite: show.Overwrite = False,
    as_json: show.Json = False,
) -> None:
    """Apply techniques, measure each step on the written file, and export. Ctrl-C is safe: the same command goes on.

    Meanwhile trainings and measurements are kept beside --out, in the hidden folder .NAME.work.

    [bold]Examples[/bold]

    flyweight compress bot nlu.yml --technique int8 --out bot.fly

    flyweight compress bot nlu.yml -t codebook:encoder=8 --out bot-3bit.fly
    """
    _workshop()
    from flyweight.data.load import load_data, recorded_split
    from flyweight.export.fly import save
    from flyweight.model.nlu import NLUModel
    from flyweight.recipe import Recipe
    from flyweight.recipe import compress as run

    if (technique is None) == (recipe is None):
        raise ConfigError("give either --technique (once or more) or --recipe")
    _check_out(out, model, "model that is to be compressed", overwrite)
    steps = Recipe.load(recipe) if recipe else Recipe.parse(technique or [])
    teacher = NLUModel.load(model)
    split = recorded_split(teacher.card.split)
    found = load_data(data, **split, text_column=text_column, intent_column=intent_column)
    work = out.resolve().with_name(f".{out.resolve().name}.work")
    try:
        small = run(teacher, found, steps, seed=seed, folder=work)
    except FlyweightError:
        _remove_untrained(work)
        raise
    written = save(small, out)
    shutil.rmtree(work, ignore_errors=True)  # only now: until the file is written, a training is worth keeping
    made = small.card.steps[-len(steps.techniques) :]
    if as_json:
        show.print_json({"file": str(written), "receipts": made})
        return
    part = {"train": "training"}.get(made[-1]["part"], made[-1]["part"])
    title = f"{written}: measured on {made[-1]['quality']['n_messages']} {part} messages"
    receipts.print_receipts(made, bool(small.labels.entity_labels), title)
    if made[-1]["latency_ms"] >= made[-1]["parent_ms"]:
        show.note(_slow_note(made[-1]["engine"]))


def _remove_untrained(work: Path) -> None:
    """Remove the folder of a refused command, unless a training lies in it: empty folders and measured times go."""
    if all(p.is_dir() or p.match("shapes-*.json") for p in work.rglob("*")):
        shutil.rmtree(work, ignore_errors=True)


def _slow_note(engine: str) -> str:
    """Why a file may be no faster than its parent. engine: as a receipt has it."""
    found = f"note: on this machine the file, run by {engine}, is no faster than its parent in PyTorch; it is smaller."
    if engine == "numpy":
        return f"{found} The reference is made for checking, not for speed; flyweight doctor says why it runs."
    if engine == "engine scalar":
        return f"{found} The scalar level is what the others are checked by; flyweight doctor says which this CPU has."
    return found


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the .fly files and the teacher.")] = Path("demo"),
    as_json: show.Json = False,
) -> None:
    """Train MiniLM on the embedded data, compress it, compare, and answer three sentences (a few minutes).

    [bold]Examples[/bold]

    flyweight demo

    flyweight demo --out /tmp/demo --json
    """
    _workshop()
    from flyweight.demo import SENTENCES, run_demo

    result = run_demo(out, say=show.note)
    if as_json:
        show.print_json({"table": [row.to_dict() for row in result.rows], "answers": result.answers})
        return
    show.comparison_table(result.rows, result.title)
    print(result.remark)
    for text, answer in zip(SENTENCES, result.answers, strict=True):
        spans = show.entities_text(answer["entities"])
        print(f"\n> {text}\n  {answer['intent']['name']} ({answer['intent']['confidence']:.2f})  {spans}")
    print(f'\nTry it: flyweight parse {result.best} "{SENTENCES[0]}"')


def import_model(
    source: Annotated[
        str,
        typer.Argument(help="A folder or Hub id: fine-tuned *ForSequenceClassification or *ForTokenClassification."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    labels: Annotated[
        Path | None, typer.Option(help="Class names, one a line in the order of the head, if config.json lacks them.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Messages of these labels: their validation part fits temperature, threshold.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longer messages lose their tail.")] = 128,
    fallback_rate: FallbackRate = 0.0,
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    overwrite: show.Overwrite = False,
    as_json: show.Json = False,
) -> None:
    """Take an already fine-tuned Hugging Face folder as a teacher: it can be compressed without retraining.

    [bold]Examples[/bold]

    flyweight import my-roberta --data nlu.yml --out teacher

    flyweight import ner-model --labels tags.txt --out tagger
    """
    _workshop()
    from flyweight.data.load import load_data
    from flyweight.data.source import read_text
    from flyweight.training.teacher import import_teacher

    _check_out(out, Path(source), "folder that is to be imported", overwrite)
    names = [line.strip() for line in read_text(labels).splitlines() if line.strip()] if labels else None
    found = load_data(data, text_column=text_column, intent_column=intent_column) if data else None
    model = import_teacher(source, found, labels=names, max_tokens=max_tokens, fallback_rate=fallback_rate)
    model.save(out)
    made = model.labels
    if as_json:
        fitted = {"temperature": made.temperature, "threshold": made.threshold}
        show.print_json(
            {"model": str(out), "labels": made.intents or made.tags, "parameters": model.n_parameters()} | fitted
        )
        return
    what = f"{len(made.intents)} intents" if made.intents else f"{len(made.entity_labels)} entity types"
    print(f"{out}: {model.card.steps[-1]['imported']}, {what}, {model.n_parameters():,} parameters")
    if made.intents and not data:
        show.note("note: without --data confidences are not calibrated (temperature 1) and no threshold is fitted")


def _teacher(paths: list[Path]) -> Teacher:
    """A model folder, a .fly or a file of logits; several are an ensemble. Errors: FlyweightError."""
    from flyweight.model.nlu import NLUModel
    from flyweight.training.logits import Ensemble, LogitsTeacher

    found: list[Teacher] = []
    for path in paths:
        if path.suffix == ".jsonl":
            found.append(LogitsTeacher.from_file(path))
        else:
            found.append(LogitsTeacher.from_fly(path) if path.suffix == ".fly" else NLUModel.load(path))
    return found[0] if len(found) == 1 else Ensemble(found)


def _check_out(out: Path, source: Path, role: str, overwrite: bool) -> None:
    """Refuse to write over the source itself, and over whatever exists unless told."""
    if out.resolve() == source.resolve():
        raise ConfigError(f"--out is {out}, the {role}; choose another --out")
    if (out.is_file() or (out.is_dir() and any(out.iterdir()))) and not overwrite:
        what = "a model" if out.is_file() or (out / "config.json").exists() else "files"
        raise ConfigError(f"{out} already holds {what}; choose another --out, or add --overwrite")


def _workshop() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("torch", "workshop", "training and compressing") from error
