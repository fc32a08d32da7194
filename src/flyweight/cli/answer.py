"""parse, inspect, verify: verbs that need a .fly file and no PyTorch."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flyweight.cli import show
from flyweight.errors import ConfigError, ParityError

if TYPE_CHECKING:
    from flyweight.artifact import Artifact


def parse(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FLY] [TEXT]...",
            help="A .fly file, or 'assistant': the bundled model, which answers where none is named; then messages "
            "(without any: one a line from stdin).",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Least confidence, below it nlu_fallback; 0 for none, by default the file's own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line (Rasa's parse result).")] = False,
) -> None:
    """Answer messages: intent, confidence, entities.

    [bold]Examples[/bold]

    flyweight parse "wake me at seven"

    flyweight parse bot.fly --json < messages.txt
    """
    from flyweight.runtime.parser import BUNDLED, load

    text = list(words or [])
    fly = text.pop(0) if text and (text[0] == BUNDLED or _names_a_model(text[0])) else BUNDLED
    if not text and sys.stdin.isatty():
        raise ConfigError("no message: give one after the file, or pipe lines into stdin")
    if fly == BUNDLED and len(text) > 1 and words and text[0] == words[0] and " " not in text[0]:
        raise ConfigError(f"{text[0]!r} is no .fly file here; name one (its name ends in .fly), or quote each message")
    nlu = load(fly, threshold=threshold)
    if fly == BUNDLED:
        show.note(
            f"answered by the bundled model '{BUNDLED}' (a household and travel assistant); name a .fly file for yours"
        )
    for message in text or (line.rstrip("\r\n") for line in sys.stdin):
        answer = nlu.parse(message)
        if as_json:
            print(json.dumps(answer, ensure_ascii=False), flush=True)
            continue
        spans = show.entities_text(answer["entities"])
        print(f"{answer['intent']['name'] or '-'}\t{answer['intent']['confidence']:.4f}\t{spans}", flush=True)


def _names_a_model(word: str) -> bool:
    """Whether a word names a .fly file, or a model folder, which is refused, rather than being a message."""
    return word.endswith(".fly") or os.path.isfile(word) or os.path.isfile(os.path.join(word, "config.json"))


def inspect(
    fly: Annotated[Path, typer.Argument(help="A .fly file, or 'assistant', the bundled model.")],
    as_json: show.Json = False,
) -> None:
    """Show the model card: architecture, weight forms and bytes, lineage, metrics, golden samples.

    [bold]Examples[/bold]

    flyweight inspect bot.fly

    flyweight inspect bot.fly --json
    """
    from flyweight.artifact import read
    from flyweight.runtime.parser import find

    artifact = read(find(fly))
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
        ("temperature, threshold", f"{labels['temperature']}, {labels.get('threshold', 0.0):.4g}"),
        ("base, data", f"{lineage['base']}, {lineage['data_fingerprint'][:12]}"),
        ("made with", ", ".join(f"{k} {v}" for k, v in lineage["versions"].items())),
        ("golden samples", f"{len(m['golden']['texts'])}, tolerance {m['golden']['tolerance']:.3g}"),
    ]
    for step in lineage["steps"]:
        facts.append((next((k for k in ("training", "imported") if k in step), step.get("technique")), _step(step)))
    show.print_table(["what", "found"], facts, "model card")
    print()
    rows = []
    for group in _groups(artifact):
        rows.append(
            [group.name, group.shape, group.described, group.activations, group.bits, f"{group.n_bytes / 1e3:.1f}"]
        )
    columns = ["matrix", "shape", "form", "acti-\nvations", "bits/\nweight", "kB"]
    show.print_table(columns, rows, "weights (kB: of all layers of a line, biases included)")


def verify(
    fly: Annotated[Path, typer.Argument(help="A .fly file, or 'assistant', the bundled model.")],
    as_json: show.Json = False,
) -> None:
    """Check structure, SHA-256 of every tensor, and the golden samples.

    [bold]Examples[/bold]

    flyweight verify bot.fly

    flyweight verify bot.fly --json
    """
    from flyweight.artifact import verify as verify_file
    from flyweight.runtime.parser import Parser, find

    parser = Parser(verify_file(find(fly)))
    golden = parser.check_golden()
    if not golden.passed:
        raise ParityError(f"{fly}: {golden}")
    n, engine = len(parser.artifact.arrays), parser.engine.title
    if as_json:
        found = {"golden_difference": golden.difference, "golden_equal": golden.equal, "tolerance": golden.tolerance}
        show.print_json({"file": str(fly), "tensors": n, "engine": engine, **found})
        return
    near = "equal" if golden.equal else f"within {golden.difference:.3g} RMS (allowed {golden.tolerance:.3g})"
    print(f"{fly}: {n} tensors intact; golden samples by {engine}: {near}")


@dataclass
class _Group:
    """Matrices that differ in nothing but their layer: `layers.0-5.ffn.up`. place: (before, after) the layer."""

    place: tuple[str, str]
    first: int | None
    last: int | None
    shape: str
    form: str
    activations: str
    n_weights: int
    n_kept: int  # of them, where the form is sparse
    n_bytes: int

    @property
    def name(self) -> str:
        """The place, with the layers where it has some."""
        if self.first is None:
            return self.place[0]
        layers = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.place[0]}{layers}{self.place[1]}"

    @property
    def described(self) -> str:
        """The form, and of a sparse one the share of weights that survived, of all layers together."""
        share = f", {self.n_kept / max(1, self.n_weights):.0%} kept" if self.form.startswith("sparse") else ""
        return self.form + share

    @property
    def bits(self) -> str:
        """Bits a weight, biases included."""
        return f"{8 * self.n_bytes / self.n_weights:.2f}" if self.n_weights else "-"


def _groups(artifact: Artifact) -> list[_Group]:
    """The matrices of a file, equal ones of consecutive layers as one."""
    groups: list[_Group] = []
    latest: dict[tuple[str, str], _Group] = {}
    for name, entry in artifact.manifest["weights"].items():
        n_bytes = sum(a.nbytes for key, a in artifact.arrays.items() if key.startswith(f"{name}."))
        activations = entry["activations"] + (", int8 attention" if "output_scales" in entry else "")
        found = re.fullmatch(r"(layers\.)(\d+)(\..+)", name)
        place, layer = ((found[1], found[3]), int(found[2])) if found else ((name, ""), None)
        rows, columns = entry["shape"]
        n_kept = _n_kept(artifact, name, entry)
        group = _Group(
            place, layer, layer, f"{rows}x{columns}", _form(entry), activations, rows * columns, n_kept, n_bytes
        )
        before = latest.get(place)
        if before and layer is not None and before.last == layer - 1 and _alike(before, group):
            before.last = layer
            before.n_weights += group.n_weights
            before.n_kept += n_kept
            before.n_bytes += n_bytes
        else:
            groups.append(group)
            latest[place] = group
    return groups


def _form(entry: dict[str, Any]) -> str:
    """A form in a few words: "int8 per=row shift=0", "sparse 1x4 int8", "sparse codes centres=16"."""
    if entry["form"] != "sparse":
        return " ".join(
            [entry["form"], *(f"{k}={entry[k]}" for k in ("centres", "per", "table", "shift") if k in entry)]
        )
    values = entry["values"]
    words = ["sparse", *(["1x4"] if entry["block"] == 4 else []), values["form"]]
    return " ".join(words + [f"{k}={values[k]}" for k in ("centres",) if k in values])


def _n_kept(artifact: Artifact, name: str, entry: dict[str, Any]) -> int:
    """Weights of a matrix that survived; all of one that is not sparse."""
    from flyweight.forms.sparse import count

    rows, columns = entry["shape"]
    if entry["form"] != "sparse":
        return rows * columns
    return count(artifact.arrays[f"{name}.mask"], (rows, columns), entry["block"], entry["layout"])


def _alike(a: _Group, b: _Group) -> bool:
    return (a.shape, a.form, a.activations) == (b.shape, b.form, b.activations)


def _step(step: dict) -> str:
    """One line of lineage."""
    if "imported" in step:
        return str(step["imported"])
    if "training" in step:
        return f"{step['messages']} messages, {step['steps']} steps, best epoch {step['best_epoch']}"
    quality = step["quality"]
    metric = "intent_macro_f1" if quality.get("n_intent_messages") else "span_f1"
    loss = quality.get("losses", {}).get(metric, {}).get("loss_percent")
    name = show.METRIC_NAMES[metric]
    measured = f"; {name} {quality[metric]:.4f} (loss {loss:+.2f}%)" if loss is not None else ""
    settings = ", ".join(f"{k}={str(v).lower()}" for k, v in step["settings"].items())
    return f"{settings}; {step['file_bytes'] / 1e6:.2f} MB{measured}"
