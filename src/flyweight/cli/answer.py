"""parse, inspect, verify: verbs that need a .fly file and no PyTorch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flyweight.cli import show
from flyweight.errors import ConfigError, ParityError


def parse(
    fly: Annotated[Path, typer.Argument(help="A .fly file.")],
    text: Annotated[list[str] | None, typer.Argument(help="Messages; without any, one a line from stdin.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line (Rasa's parse result).")] = False,
) -> None:
    """Answer messages: intent, confidence, entities.

    [bold]Examples[/bold]

    flyweight parse bot.fly "wake me at seven"

    flyweight parse bot.fly --json < messages.txt
    """
    from flyweight.runtime.parser import load

    if not text and sys.stdin.isatty():
        raise ConfigError("no message: give one after the file, or pipe lines into stdin")
    nlu = load(fly)
    for message in text or (line.rstrip("\r\n") for line in sys.stdin):
        answer = nlu.parse(message)
        if as_json:
            print(json.dumps(answer, ensure_ascii=False), flush=True)
            continue
        spans = show.entities_text(answer["entities"])
        print(f"{answer['intent']['name']}\t{answer['intent']['confidence']:.4f}\t{spans}", flush=True)


def inspect(
    fly: Annotated[Path, typer.Argument(help="A .fly file.")],
    as_json: show.Json = False,
) -> None:
    """Show the model card: architecture, weight forms and bytes, lineage, metrics, golden samples.

    [bold]Examples[/bold]

    flyweight inspect bot.fly

    flyweight inspect bot.fly --json
    """
    from flyweight.artifact import read

    artifact = read(fly)
    m = artifact.manifest
    if as_json:
        show.print_json(m | {"size_bytes": artifact.size_bytes})
        return
    encoder, labels = m["model"]["encoder"], m["model"]["labels"]
    shapes = sorted({(layer["heads"], layer["ffn"]) for layer in encoder["layers"]})
    lineage = m["lineage"]
    facts = [
        ("file", f"{artifact.path}, {artifact.size_bytes / 1e6:.2f} MB, format {m['format_version']}"),
        ("numerics, layout", f"version {m['numerics_version']}, {m['layout']}"),
        ("encoder", f"{len(encoder['layers'])} layers x {encoder['hidden']}; (heads, ffn) {shapes}"),
        ("labels", f"{len(labels['intents'])} intents, {len(labels['entity_labels'])} entity types"),
        ("temperature", f"{labels['temperature']}"),
        ("base, data", f"{lineage['base']}, {lineage['data_fingerprint'][:12]}"),
        ("made with", ", ".join(f"{k} {v}" for k, v in lineage["versions"].items())),
        ("golden samples", f"{len(m['golden']['texts'])}, tolerance {m['golden']['tolerance']:.3g}"),
    ]
    for step in lineage["steps"]:
        facts.append(("training" if "training" in step else step["technique"], _step(step)))
    show.print_table(["what", "found"], facts, "model card")
    rows = []
    for name, entry in m["weights"].items():
        size = sum(a.nbytes for key, a in artifact.arrays.items() if key.startswith(f"{name}."))
        n = entry["shape"][0] * entry["shape"][1]
        detail = " ".join(f"{k}={entry[k]}" for k in ("centres", "per", "table", "shift") if k in entry)
        bits = f"{8 * size / n:.2f}" if n else "-"
        rows.append([name, f"{entry['shape']}", entry["form"], detail, entry["activations"], bits, f"{size / 1e3:.1f}"])
    columns = ["matrix", "shape", "form", "detail", "activations", "bits/weight", "kB"]
    show.print_table(columns, rows, "weights")


def verify(
    fly: Annotated[Path, typer.Argument(help="A .fly file.")],
    as_json: show.Json = False,
) -> None:
    """Check structure, SHA-256 of every tensor, and the golden samples.

    [bold]Examples[/bold]

    flyweight verify bot.fly

    flyweight verify bot.fly --json
    """
    from flyweight.artifact import verify as verify_file
    from flyweight.runtime.parser import Parser

    parser = Parser(verify_file(fly))
    golden = parser.check_golden()
    if not golden.passed:
        raise ParityError(f"{fly}: golden samples differ by {golden.largest:.3g}, allowed is {golden.tolerance:.3g}")
    n = len(parser.artifact.arrays)
    if as_json:
        show.print_json(
            {"file": str(fly), "tensors": n, "golden_largest": golden.largest, "tolerance": golden.tolerance}
        )
        return
    print(f"{fly}: {n} tensors intact; golden samples within {golden.largest:.3g} (allowed {golden.tolerance:.3g})")


def _step(step: dict) -> str:
    """One line of lineage."""
    if "training" in step:
        return f"{step['messages']} messages, {step['steps']} steps, best epoch {step['best_epoch']}"
    quality = step["quality"]
    loss = quality.get("losses", {}).get("intent_macro_f1", {}).get("loss_percent")
    measured = f"; macro-F1 {quality['intent_macro_f1']:.4f} (loss {loss:+.2f}%)" if loss is not None else ""
    return f"{step['settings']}; {step['file_bytes'] / 1e6:.2f} MB{measured}"
