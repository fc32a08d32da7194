"""What whole heads, neurons, layers and word rows are worth: quality and engine time of each point, in int8.

    python benchmarks/heads_neurons.py [sara-dedup banking77] [--seeds 0] [--base minilm] [--recipes "heads 90%" ...]

Every recipe of HEADS, NEURONS and VOCABULARY in compressed.py, int8 last, against the dense model in int8: losses on
the test messages (and on the validation messages, by which nothing was chosen here but epochs and layers), with a 95%
paired bootstrap interval; bytes of the file; milliseconds a message in the native engine, batch 1, one thread,
tokenizer included, call by call in turn (also the median of the calls' ratios, which a busy machine moves least);
minutes of making. "heads p%": by rounds, without training.

Of a vocabulary also: rows; test messages that are cut into other tokens than before, and the score of these alone; and
words nobody trained on (those of the other sets): cut into how many tokens, how many of them unknown.
Models are made once and found in the cache (compressed.py). Writes benchmarks/results/heads_neurons.json after every
set and seed: rows of other recipes stay. The share of heads that may go is the largest of the rounds up to which the
loss is at most 0.5%: on the test messages, and on the validation messages, by which one would stop.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from compressed import HEADS, PARTS_CUT, VOCABULARY, compressed
from real_data import METRICS
from teachers import DATA, SETS, teacher

import flyweight as fw
from flyweight.measure.latency import ratio
from flyweight.measure.machine import machine
from flyweight.report.comparison import Contender, Row, comparison
from flyweight.runtime.parser import Parser
from flyweight.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results" / "heads_neurons.json"
DENSE = "int8"
BOUND = 0.5  # percent, for the share of heads that may go
SCORED = METRICS | {"sara-dedup": ("intent_macro_f1", "span_f1")}


def measure(name: str, base: str, seed: int, labels: list[str], n_calls: int) -> dict[str, Any]:
    """One set, one seed: a row a recipe, the dense int8 first."""
    model, data = teacher(name, base, seed)
    made = {label: compressed(name, base, seed, label) for label in (DENSE, *labels)}
    parsers = {label: fw.load(found.fly) for label, found in made.items()}
    contenders = [Contender(label, p.engine.title, p, made[label].fly) for label, p in parsers.items()]
    test = comparison(contenders, data.test, n_latency_calls=n_calls)
    validation = comparison(contenders, data.validation)
    rows = []
    for row, chosen in zip(test, validation, strict=True):
        found = _row(row, SCORED[name]) | {"validation": _scores(chosen, SCORED[name])}
        if row.latency and test[0].latency:  # a busy machine moves the median of the calls' ratios least
            found["speedup_median_per_call"] = ratio(test[0].latency, row.latency).median_per_call
        found |= {"minutes": made[row.name].made["minutes"], "shape": _shape(parsers[row.name])}
        if row.name in VOCABULARY:
            found["vocabulary"] = words(model, data, parsers[DENSE], parsers[row.name], name)
        rows.append(found)
    return {"set": name, "base": Path(base).name, "seed": seed, "rows": rows}


def _row(row: Row, metrics: tuple[str, ...]) -> dict[str, Any]:
    latency = row.latency.to_dict() if row.latency else None
    return {
        "name": row.name,
        "size_bytes": row.size_bytes,
        "latency": latency,
        "speedup": row.speedup,
        "test": _scores(row, metrics),
    }


def _scores(row: Row, metrics: tuple[str, ...]) -> dict[str, Any]:
    """Scores, flips and, but for the dense model, losses."""
    q = row.quality
    found = {"n_messages": q.n_messages, "intent_macro_f1": q.intent_macro_f1, "intent_accuracy": q.intent_accuracy}
    found |= {"span_f1": q.span_f1, "n_flips": q.n_flips}
    return found | {"losses": {k: q.losses[k].to_dict() for k in metrics} if q.losses else None}


def _shape(parser: Parser) -> dict[str, Any]:
    config = parser.artifact.manifest["model"]["encoder"]
    layers = config["layers"]
    return {
        "heads": [layer["heads"] for layer in layers],
        "ffn": [layer["ffn"] for layer in layers],
        "word_rows": config["vocab_size"],
    }


def words(model: fw.NLUModel, data: fw.NLUData, dense: Parser, small: Parser, name: str) -> dict[str, Any]:
    """What the new tokenizer does to the test messages and to words of other domains."""
    old, new = dense.tokenizer, small.tokenizer
    pairs = zip(
        old.encode_batch([m.text for m in data.test]), new.encode_batch([m.text for m in data.test]), strict=True
    )
    changed = [m for m, (a, b) in zip(data.test, pairs, strict=True) if len(a.ids) != len(b.ids)]
    others = sorted(
        {w for other in SETS if other != name for m in fw.load_data(DATA / other).test for w in m.text.split()}
    )
    scores = {}
    if changed:
        scores = {k: fw.evaluate(p, changed).intent_accuracy for k, p in (("dense", dense), ("vocabulary", small))}
    return {
        "rows_before": model.encoder.config.vocab_size,
        "test_messages_cut_otherwise": len(changed),
        "intent_accuracy_of_these": scores,
        "unseen_words": len(others),
        "tokens_before": sum(len(e.ids) - 2 for e in old.encode_batch(others)),
        "tokens_after": sum(len(e.ids) - 2 for e in new.encode_batch(others)),
        "unknown_before": _unknown(old, others),
        "unknown_after": _unknown(new, others),
    }


def _unknown(tokenizer: Tokenizer, texts: list[str]) -> int:
    """Unknown tokens in all texts; a tokenizer of bytes has none."""
    model = json.loads(tokenizer.source)["model"]
    unk = model["unk_id"] if "unk_id" in model else model["vocab"].get(model.get("unk_token"))
    return 0 if unk is None else sum(int((e.ids == unk).sum()) for e in tokenizer.encode_batch(texts))


def removable(run: dict[str, Any], trained: bool) -> dict[str, Any]:
    """The largest share of heads that goes, round by round, while every loss is within BOUND: on test, validation."""
    dense = sum(next(row for row in run["rows"] if row["name"] == DENSE)["shape"]["heads"])
    rows = {row["name"]: row for row in run["rows"]}
    shares = {"test": 0.0, "validation": 0.0}
    for split in shares:
        for label in (label for label in HEADS if label.endswith("trained") == trained):
            losses = rows[label][split]["losses"] if label in rows else {}
            if not losses or any(losses[k]["loss_percent"] > BOUND for k in METRICS[run["set"]]):
                break
            shares[split] = round(1 - sum(rows[label]["shape"]["heads"]) / dense, 3)
    return {"set": run["set"], "base": run["base"], "seed": run["seed"], "trained": trained, "share": shares}


def keep(run: dict[str, Any]) -> None:
    """Put one run into the results: rows of the same recipe are replaced, others stay."""
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"runs": []}
    runs = {(r["set"], r["base"], r["seed"]): r for r in found["runs"]}
    key = run["set"], run["base"], run["seed"]
    rows = {row["name"]: row for row in runs.get(key, run)["rows"]} | {row["name"]: row for row in run["rows"]}
    order = [DENSE, *PARTS_CUT]
    runs[key] = run | {"rows": sorted(rows.values(), key=lambda row: order.index(row["name"]))}
    ordered = sorted(runs.values(), key=lambda r: (SETS.index(r["set"]), r["base"], r["seed"]))
    shares = [
        removable(r, trained)
        for r in ordered
        for trained in (False, True)
        if any(label.endswith("trained") == trained for label in HEADS if label in {row["name"] for row in r["rows"]})
    ]
    result = {"machine": machine(), "threads": 1, "bound_percent": BOUND, "heads_removable": shares, "runs": ordered}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=["sara-dedup", "banking77"], metavar="SET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--recipes", nargs="+", default=list(PARTS_CUT), choices=list(PARTS_CUT), metavar="RECIPE")
    parser.add_argument("--calls", type=int, default=300, help="timed calls a model")
    chosen = parser.parse_args()
    for name in chosen.sets:
        for seed in chosen.seeds:
            run = measure(name, chosen.base, seed, chosen.recipes, chosen.calls)
            keep(run)
            for row in run["rows"]:
                losses = {k: round(v["loss_percent"], 2) for k, v in (row["test"]["losses"] or {}).items()}
                print(
                    f"{name} seed {seed} {row['name']:34} loss {losses} flips {row['test']['n_flips']} "
                    f"bytes {row['size_bytes']} p50 {row['latency']['p50_ms']:.3f} ms "
                    f"({row['speedup_median_per_call']:.2f}x) minutes {row['minutes']}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
