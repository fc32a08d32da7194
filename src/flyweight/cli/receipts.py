"""What `compress` prints: a line a technique as it ends; a table of receipts, losses with their intervals, what was
reached, notes on what is odd.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from flyweight.cli import show

if TYPE_CHECKING:
    from flyweight.receipt import SizeAndSpeed


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
        for line in (*reached_lines(r["reached"]), *sparse_lines(r["sparse"])):
            print(f"{r['technique']}: {line}")
        if r["repacked"]:
            show.note(f"note: {r['technique']} packed {r['repacked']} matrices anew that had been packed before it")


def line(number: int, of: int, receipt: dict[str, Any], kept: bool) -> str:
    """`2/5 int8: macro-F1 0.9812 (loss +0.12%), 3 flips, 23.42 MB, 0.46 ms (9.1x the parent's speed), 0.02 minutes`."""
    q = receipt["quality"]
    scored = [("macro-F1", "intent_macro_f1", q["n_intent_messages"]), ("span F1", "span_f1", q["n_gold_spans"])]
    parts = [f"{name} {q[key]:.4f} (loss {q['losses'][key]['loss_percent']:+.2f}%)" for name, key, n in scored if n]
    parts += [f"{q['n_flips']} flips", f"{receipt['file_bytes'] / 1e6:.2f} MB"]
    parts += [f"{receipt['latency_ms']:.2f} ms ({q['speedup']:.2f}x the parent's speed)"]
    parts += [f"{receipt['minutes']:.2f} minutes{', kept from before' * kept}"]
    return f"{number}/{of} {name_and_settings(receipt['technique'], receipt['settings'])}: {', '.join(parts)}"


def worse_lines(receipts: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each technique that made the file larger and slower, and for all of them together."""
    from flyweight.receipt import all_worse, size_and_speed

    parent, lines = (receipts[0]["parent_bytes"], 1.0), []
    before = [parent, *map(size_and_speed, receipts)]
    for receipt, was in zip(receipts, before, strict=False):
        if receipt["worsens"]:
            lines.append(f"worse: {receipt['technique']} {_worse(size_and_speed(receipt), was)}; leave it out")
    if all_worse(receipts[-1]):
        lines.append(f"worse: the whole recipe {_worse(size_and_speed(receipts[-1]), parent)}; use another")
    return lines


def _worse(now: SizeAndSpeed, was: SizeAndSpeed) -> str:
    return (
        f"makes the file larger ({was[0] / 1e6:.2f} to {now[0] / 1e6:.2f} MB) and slower "
        f"({was[1]:.2f}x to {now[1]:.2f}x the parent's speed)"
    )


def reached_lines(reached: dict[str, Any]) -> list[str]:
    """What a technique says of itself: of structured a line on the time that was wanted, and one on the shape."""
    if not reached:
        return []
    if "measured_ms" not in reached:
        return ["; ".join(f"{key.replace('_', ' ')} {value}" for key, value in reached.items())]
    named = ("measured", "wanted", "predicted", "dense")
    times = dict(zip(named, (f"{reached[f'{name}_ms']:.4g}" for name in named), strict=True))
    weights = "int8" if reached["bits"] == 8 else f"{reached['bits']}-bit codes"
    layers = " ".join(f"{heads}x{neurons}" for heads, neurons in reached["layers"])
    return [
        f"{times['measured']} ms a message, wanted {times['wanted']}, predicted {times['predicted']}; the dense model "
        f"{times['dense']}, so {reached['times_faster']:.2f} times faster ({weights}, engine, without tokenizer)",
        f"heads x neurons left, layer by layer: {layers or 'no layer'}",
    ]


def sparse_lines(sparse: dict[str, Any]) -> list[str]:
    """A line on how many pruned matrices lie how in the file, one on the sparsity from which sparse pays by shape."""
    lines = []
    if sparse.get("stored"):
        counts = Counter(sparse["stored"].values()).most_common()
        lines.append(f"pruned matrices stored {', '.join(f'{n} {how}' for how, n in counts)}")
    if sparse.get("break_even"):
        even = ((k, "never" if v is None else f"from {100 * v:.0f}%") for k, v in sparse["break_even"].items())
        lines.append(f"sparse is faster here: {', '.join(f'{share} ({shape})' for shape, share in even)}")
    return lines


def name_and_settings(name: str, settings: dict[str, Any]) -> str:
    """`codebook encoder=4 heads=none`: a technique and those of its settings that are not the default."""
    from flyweight.techniques import TECHNIQUES

    defaults = {f.name: f.default for f in fields(TECHNIQUES[name])}
    changed = {k: v for k, v in settings.items() if v != defaults[k]}
    return " ".join([name, *(f"{k}={str(v).lower()}" for k, v in changed.items())])
