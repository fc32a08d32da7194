"""train, import, demo: verbs that make models (they need the workshop: PyTorch)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from flyweight.cli import show
from flyweight.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from flyweight.model.nlu import NLUModel, Pooling
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
    pooling: Annotated[str, typer.Option(help="mean, max, cls, cls+tanh, cls+relu or cls+gelu.")] = "mean",
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
    workshop()
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


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the .fly files and the teacher.")] = Path("demo"),
    as_json: show.Json = False,
) -> None:
    """Train MiniLM on the embedded data, compress it, compare, and answer three sentences (a few minutes).

    [bold]Examples[/bold]

    flyweight demo

    flyweight demo --out /tmp/demo --json
    """
    workshop()
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
    workshop()
    from flyweight.data.load import load_data
    from flyweight.data.source import read_text
    from flyweight.training.teacher import import_teacher

    check_out(out, Path(source), "folder that is to be imported", overwrite)
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
        if path.is_dir():
            found.append(NLUModel.load(path))
        elif path.is_file() and path.suffix in (".fly", ".jsonl"):
            found.append(LogitsTeacher.from_fly(path) if path.suffix == ".fly" else LogitsTeacher.from_file(path))
        else:
            what = "is none of these" if path.exists() else "is not there"
            raise ConfigError(f"--teacher is {path}, which {what}; allowed: a model folder, a .fly or .jsonl file")
    return found[0] if len(found) == 1 else Ensemble(found)


def model_folder(path: Path) -> NLUModel:
    """The model of a folder that is there; PyTorch works on no .fly. Errors: ConfigError, those of `NLUModel.load`."""
    from flyweight.model.nlu import NLUModel

    if not path.is_dir():
        what = "is not there" if not path.exists() else f"is a {path.suffix or 'file'}"
        raise ConfigError(f"{path} {what}; a model folder is needed: what 'flyweight train --out' wrote")
    return NLUModel.load(path)


def check_out(out: Path, source: Path, role: str, overwrite: bool) -> None:
    """Refuse to write over the source itself, and over whatever exists unless told."""
    if out.resolve() == source.resolve():
        raise ConfigError(f"--out is {out}, the {role}; choose another --out")
    if (out.is_file() or (out.is_dir() and any(out.iterdir()))) and not overwrite:
        what = "a model" if out.is_file() or (out / "config.json").exists() else "files"
        raise ConfigError(f"{out} already holds {what}; choose another --out, or add --overwrite")


def workshop() -> None:
    """Refuse where PyTorch is missing."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("torch", "workshop", "training and compressing") from error
