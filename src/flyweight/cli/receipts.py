"""What `compress` prints: a table of receipts, the losses with their intervals, and notes on what is odd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from flyweight.cli import show


def print_receipts(receipts: Sequence[dict[str, Any]], tags_entities: bool, title: str) -> None:
    """One row a technique, as its file was measured; below, each loss against the model before the first technique."""
    rows, losses = [], []
    for r in receipts:
        q = r["quality"]
        has_spans = tags_entities and q["n_gold_spans"] + q["n_predicted_spans"] > 0
        name = name_and_settings(r["technique"], r["settings"])
        scored = {"intent_macro_f1": q["n_intent_messages"] > 0, "span_f1": has_spans}
        cells = [*(f"{q[metric]:.4f}" if there else "-" for metric, there in scored.items()), f"{q['n_flips']}"]
        times = [f"{r['latency_ms']:.2f} / {r['parent_ms']:.2f}", f"{r['minutes']:.2f}"]
        rows.append([name, *cells, f"{r['file_bytes'] / 1e6:.2f}", *times])
        for metric in [metric for metric, there in scored.items() if there]:
            losses.append(f"{r['technique']}: {show.loss_text(metric, q['losses'][metric])}")
    columns = ["technique", "macro-F1", "span F1", "flips", "MB", "ms / parent", "minutes"]
    show.print_table(columns, rows, title)
    print("\n".join(losses))
    for r in receipts:
        if r["repacked"]:
            show.note(f"note: {r['technique']} packed {r['repacked']} matrices anew that had been packed before it")


def name_and_settings(name: str, settings: dict[str, Any]) -> str:
    """`codebook encoder=4 heads=none`: a technique and those of its settings that are not the default."""
    from flyweight.techniques import TECHNIQUES

    defaults = {f.name: f.default for f in fields(TECHNIQUES[name])}
    changed = {k: v for k, v in settings.items() if v != defaults[k]}
    return " ".join([name, *(f"{k}={str(v).lower()}" for k, v in changed.items())])
