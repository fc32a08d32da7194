"""What `compress` prints: a table of receipts, the losses with their intervals, and notes on what is odd."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from flyweight.cli import show

if TYPE_CHECKING:  # the workshop half is loaded by the verbs that need it
    from flyweight.model.nlu import NLUModel
    from flyweight.techniques.room import Technique


def print_receipts(receipts: Sequence[dict[str, Any]], tags_entities: bool, title: str) -> None:
    """One row a technique, as its file was measured; below, each loss against the model before the first technique."""
    rows, losses = [], []
    for r in receipts:
        q = r["quality"]
        has_spans = tags_entities and q["n_gold_spans"] + q["n_predicted_spans"] > 0
        name = name_and_settings(r["technique"], r["settings"])
        cells = [f"{q['intent_macro_f1']:.4f}", f"{q['span_f1']:.4f}" if has_spans else "-", f"{q['n_flips']}"]
        times = [f"{r['latency_ms']:.2f} / {r['parent_ms']:.2f}", f"{r['minutes']:.2f}"]
        rows.append([name, *cells, f"{r['file_bytes'] / 1e6:.2f}", *times])
        for metric in ("intent_macro_f1", "span_f1") if has_spans else ("intent_macro_f1",):
            losses.append(f"{r['technique']}: {show.loss_text(metric, q['losses'][metric])}")
    columns = ["technique", "macro-F1", "span F1", "flips", "MB", "ms / parent", "minutes"]
    show.print_table(columns, rows, title)
    print("\n".join(losses))


def name_and_settings(name: str, settings: dict[str, Any]) -> str:
    """`codebook encoder=4 heads=none`: a technique and those of its settings that are not the default."""
    from flyweight.techniques import TECHNIQUES

    defaults = {f.name: f.default for f in fields(TECHNIQUES[name])}  # type: ignore[arg-type]
    changed = {k: v for k, v in settings.items() if v != defaults[k]}
    return " ".join([name, *(f"{k}={str(v).lower()}" for k, v in changed.items())])


def packed_again(model: NLUModel, origin: str, techniques: Sequence[Technique]) -> list[str]:
    """A line for each technique that packs matrices which `origin` (the model) or an earlier technique had packed."""
    from flyweight.recipe import name_of

    packed_by = {name: origin for name, module, _ in model.matrices() if module.form is not None}
    lines = []
    for step in techniques:
        parts = _packed_parts(step)
        mine = [name for name, _, part in model.matrices() if part in parts]
        for earlier, n in Counter(packed_by[name] for name in mine if name in packed_by).items():
            matrices = "1 matrix" if n == 1 else f"{n} matrices"
            lines.append(f"{name_of(step)} packs again what {earlier} had packed: {matrices}")
        packed_by |= dict.fromkeys(mine, name_of(step))
    return lines


def _packed_parts(step: Technique) -> set[str]:
    """The parts of a model whose matrices a technique packs."""
    from flyweight.techniques.codebook import Codebook
    from flyweight.techniques.int8 import Int8

    if isinstance(step, Int8):
        return {"encoder"} | {part for part in ("embeddings", "heads") if getattr(step, part)}
    if isinstance(step, Codebook):
        return {part for part in ("encoder", "embeddings", "heads") if getattr(step, part) is not None}
    return set()
