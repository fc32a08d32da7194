"""data check, split, convert, augment: verbs that look at messages or write them; they need no PyTorch."""

from __future__ import annotations

import shutil
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from flyweight.cli import show
from flyweight.cli.measure import open_model, origin
from flyweight.errors import ConfigError

if TYPE_CHECKING:
    from flyweight.data.check import Finding
    from flyweight.data.messages import NLUData
    from flyweight.data.write import Form
    from flyweight.training.substitutes import WordVectors

FormName = Annotated[str | None, typer.Option("--form", help="yaml (Rasa 3.1) or jsonl; by default yaml.")]
MessagesOnly = Annotated[
    bool, typer.Option("--messages-only", help="Leave out synonyms, lookups and regexes, which JSON Lines cannot hold.")
]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def data(context: typer.Context) -> None:
    """Check messages and their labels, split them, write them in another form.

    [bold]Examples[/bold]

    flyweight data check nlu.yml

    flyweight data split nlu.yml --out parts
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command("check")
def check(
    path: show.Source,
    examples: Annotated[int, typer.Option(min=0, help="Examples shown of each finding.")] = 5,
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    as_json: show.Json = False,
) -> None:
    """Find what is wrong with messages and labels: leaks, contradictions, near-duplicates, rare labels, odd spans.

    Exit code 1 where a finding is an error: a leak, a contradiction, a row at fault.

    [bold]Examples[/bold]

    flyweight data check nlu.yml

    flyweight data check banking77/ --examples 20 --json
    """
    from flyweight.data.check import check as find
    from flyweight.data.faults import read_despite_faults
    from flyweight.data.messages import NLUData

    found, faults = read_despite_faults(path, text_column=text_column, intent_column=intent_column)
    findings = find(found or NLUData(()), faults=faults, n_examples=examples)
    if as_json:
        show.print_json({"parts": _counts(found), "findings": [asdict(finding) for finding in findings]})
    else:
        if found:
            _print_counts(found)
        _print_findings(findings)
    for line in found.notes if found else ():
        show.note(f"note: {line}")
    if found is None:
        show.note("note: the reading ended at the last of these lines; nothing else was checked")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command("split")
def split(
    path: show.Source,
    out: Annotated[Path, typer.Option(help="Folder for train, validation and test.")],
    test: Annotated[float, typer.Option(help="Share held out for testing, where the data bring no test part.")] = 0.2,
    validation: Annotated[float, typer.Option(help="Share of the rest held out for choosing, likewise.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Which messages are held out.")] = 0,
    form: FormName = None,
    messages_only: MessagesOnly = False,
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    overwrite: show.Overwrite = False,
    as_json: show.Json = False,
) -> None:
    """Hold out test and validation messages by intent, never parting duplicates, and write a folder of parts.

    [bold]Examples[/bold]

    flyweight data split nlu.yml --out parts

    flyweight data split messages.csv --out parts --test 0.3 --form jsonl
    """
    from flyweight.data.load import load_data
    from flyweight.data.write import bare, write_parts

    found = load_data(
        path, test=test, validation=validation, seed=seed, text_column=text_column, intent_column=intent_column
    )
    if messages_only:
        found = bare(found)
    written = write_parts(found, out, form=_form(form) or "yaml", overwrite=overwrite)
    notes = []
    for name, messages in (("validation", found.validation), ("test", found.test)):
        if name not in found.split:
            notes.append(f"the {name} part is the source's own")
        elif not messages:
            notes.append(f"no {name} part; whatever reads the folder holds one out of train, unless told not to")
    _report(found, written, notes, as_json)


@app.command("convert")
def convert(
    path: show.Source,
    out: Annotated[Path, typer.Option(help="A .yml or .jsonl file for all messages, or a folder for their parts.")],
    form: FormName = None,
    messages_only: MessagesOnly = False,
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    overwrite: show.Overwrite = False,
    as_json: show.Json = False,
) -> None:
    """Write messages as Rasa YAML or JSON Lines, such that they read back equal; what a form cannot hold is refused.

    [bold]Examples[/bold]

    flyweight data convert nlu.md --out nlu.yml

    flyweight data convert snips/ --out snips-jsonl --form jsonl
    """
    from flyweight.data.load import load_data
    from flyweight.data.write import bare, write_data

    found = load_data(path, test=0, validation=0, text_column=text_column, intent_column=intent_column)
    if messages_only:
        found = bare(found)
    written = write_data(found, out, form=_form(form), overwrite=overwrite)
    notes = []
    if written.is_file() and (found.validation or found.test):
        notes.append("one file does not keep the parts: train, then validation, then test; a folder does")
    _report(found, written, notes, as_json)


@app.command("augment")
def augment(
    path: show.Source,
    out: Annotated[Path, typer.Option(help="A .jsonl or .yml file for the new messages.")],
    each: Annotated[int, typer.Option(min=1, max=1000, help="New messages a training message, at most.")] = 5,
    kind: Annotated[
        list[str] | None, typer.Option(help="splice, typo, slot ...: make this kind, once or more; by default all.")
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A .fly or a model folder: its mask token, its near words, its view of capitals."),
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples shown of each kind.")] = 3,
    test: Annotated[float, typer.Option(help="Share held out for testing, where the data bring no test part.")] = 0.2,
    validation: Annotated[float, typer.Option(help="Share of the rest held out for choosing, likewise.")] = 0.1,
    split_seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Of what is held out: the seed that train was given.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of what is made.")] = 0,
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    overwrite: show.Overwrite = False,
    as_json: show.Json = False,
) -> None:
    """Make new messages of the training messages, for a teacher to answer; none is a validation or test message.

    What is held out for testing is what train held out: with --model as it says, else by --test, --validation and
    --split-seed. Kinds that keep what a message says (slot, typo, contraction, case) keep its labels; the others have
    none.

    [bold]Examples[/bold]

    flyweight data augment nlu.yml --out more.jsonl

    flyweight data augment nlu.yml --out typos.jsonl --kind typo --model bot.fly
    """
    from flyweight.data.load import load_data, recorded_split
    from flyweight.data.messages import NLUData
    from flyweight.data.write import write_file
    from flyweight.training.transfer import KINDS, made

    vectors: WordVectors | None = None
    split: dict[str, Any] = {"test": test, "validation": validation, "seed": split_seed}
    if model:
        vectors, recorded = _words_and_split(model)
        split = recorded_split(recorded)
    data = load_data(path, **split, text_column=text_column, intent_column=intent_column)
    never = [m.text for m in (*data.validation, *data.test)]
    pairs = list(made(data.train, each * len(data.train), seed, never, kind or KINDS, vectors))
    if not pairs:
        names = ", ".join(kind or KINDS)
        raise ConfigError(f"no new message of the kinds {names}; mask, nearest and case need --model, slot entities")
    written = write_file(NLUData(tuple(message for _, message in pairs)), out, overwrite=overwrite)
    by_kind = {name: [m.text for k, m in pairs if k == name] for name in kind or KINDS}
    if as_json:
        found = {name: {"messages": len(texts), "examples": texts[:examples]} for name, texts in by_kind.items()}
        show.print_json({"written": str(written), "messages": len(pairs), "kinds": found})
        return
    for note in data.notes:
        show.note(f"note: {note}")
    _explain([name for name, texts in by_kind.items() if not texts], vectors)
    rows = [[name, str(len(texts)), "\n".join(texts[:examples]) or "-"] for name, texts in by_kind.items()]
    show.print_table(["kind", "messages", "examples"], rows, f"{written}: {len(pairs)} messages")


def _explain(nothing: list[str], vectors: WordVectors | None) -> None:
    """Why kinds made nothing, where a model is what they lack, or where the model sees no capitals."""
    if vectors is None:
        if lacking := [name for name in ("mask", "nearest", "case") if name in nothing]:
            names = " and ".join([*([", ".join(lacking[:-1])] if lacking[1:] else []), lacking[-1]])
            show.note(f"note: {names} {'need' if lacking[1:] else 'needs'} --model")
        return
    if "case" in nothing and not vectors.keeps_case:
        show.note("note: case makes nothing: to the model's tokenizer capitals are small letters")
    if "mask" in nothing and not vectors.mask:
        show.note("note: mask makes nothing: the model's tokenizer has no mask token")


def _words_and_split(path: Path) -> tuple[WordVectors, dict[str, Any]]:
    """Of a .fly file or a model folder: its words, and what its training held out. Errors: FlyweightError."""
    from flyweight.training.substitutes import word_vectors

    opened = open_model(path)
    model: Any = opened.model
    if hasattr(model, "artifact"):
        rows = model.artifact.form("embeddings.words").dense()
    elif hasattr(model, "encoder"):
        rows = model.encoder.words.weight.detach().numpy()
    else:
        raise ConfigError(f"--model is {path}, which has no words; allowed: a .fly file, a model folder, 'assistant'")
    return word_vectors(model.tokenizer, rows), origin(opened)[1]


def _form(name: str | None) -> Form | None:
    from flyweight.data.write import Form

    if name is not None and name not in get_args(Form):
        raise ConfigError(f"--form is '{name}'; allowed: {', '.join(get_args(Form))}")
    return cast("Form | None", name)


def _report(data: NLUData, written: Path, notes: list[str], as_json: bool) -> None:
    for line in [*data.notes, *notes]:
        show.note(f"note: {line}")
    if as_json:
        show.print_json({"written": str(written), "parts": _counts(data), "split": data.split})
        return
    _print_counts(data, f"{written}:")


def _counts(data: NLUData | None) -> dict[str, Any]:
    """Part -> its numbers, for parts that have messages; `all` where there are several."""
    from flyweight.data.check import count

    if data is None:
        return {}
    parts = {name: messages for name, messages in data.parts.items() if messages}
    return {name: asdict(count(m)) for name, m in (parts | ({"all": data.messages} if len(parts) > 1 else {})).items()}


def _print_counts(data: NLUData, title: str = "") -> None:
    rows = [[name, *(f"{n}" if n else "-" for n in numbers.values())] for name, numbers in _counts(data).items()]
    columns = ["part", "messages", "different\ntexts", "intents", "without\nintent", "entity\nspans", "entity\ntypes"]
    show.print_table(columns, rows, title)


def _print_findings(findings: list[Finding]) -> None:
    """A line each, with its examples below it; on a terminal long lines go on indented."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    for finding in findings:
        print()
        lines = [f"{finding.severity}: {finding.kind} ({finding.count}): {finding.what}"]
        for line in lines + [f"    {example}" for example in finding.examples]:
            print(textwrap.fill(line, width, subsequent_indent=" " * 6))
    n_errors = sum(finding.severity == "error" for finding in findings)
    n_warnings = len(findings) - n_errors
    print(f"\nkinds of findings: {_n(n_errors, 'error')}, {_n(n_warnings, 'warning')}" if findings else "\nno findings")


def _n(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
