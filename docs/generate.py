"""Tables of the documentation, made from the code and the benchmark JSON; cog puts them into the Markdown files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer.main

from flyweight.cli.main import app
from flyweight.data.load import load_data
from flyweight.data.messages import Message

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TITLES = {"banking77": "BANKING77", "sara-dedup": "sara-dedup", "atis": "ATIS", "snips": "SNIPS"}


def results_table() -> str:
    """README's table of real data sets: one line a set and model."""
    found = json.loads((RESULTS / "real_data.json").read_text(encoding="utf-8"))
    lines = [
        "| data (test messages) | model | macro-F1 | accuracy | span F1 | flips | MB | ms |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    seed = min(run["seed"] for run in found["runs"])
    hidden = {x["file"] for x in found["losses"]} - set(SHOWN)

    def engines(row: int) -> str:
        return ", ".join(sorted({run["rows"][row]["engine"] for run in found["runs"]}))

    for run in found["runs"]:
        if run["seed"] != seed or run["base"] != "minilm":
            continue
        for i, row in enumerate(run["rows"]):
            if row["name"] in hidden:
                continue
            q = row["quality"]
            has_spans = row["tags_entities"] and q["n_gold_spans"] + q["n_predicted_spans"] > 0
            size = row["size_bytes"] or (run["teacher_bytes"] if i == 0 else None)
            cells = [
                f"{TITLES[run['set']]} ({run['messages']['test']})" if i == 0 else "",
                row["name"],
                f"{q['intent_macro_f1']:.4f}",
                f"{q['intent_accuracy']:.4f}",
                f"{q['span_f1']:.4f}" if has_spans else "-",
                "-" if q["n_flips"] is None else str(q["n_flips"]),
                f"{size / 1e6:.1f}" if size else "-",
                f"{row['latency']['mean_ms']:.2f}" if row["latency"] else "-",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    cpu = found["machine"]["cpu"]
    lines += [
        "",
        f"MiniLM-L6 (22.7 M parameters), seed {seed}, batch 1, one thread, tokenizer included, interleaved in one run; "
        f"CPU: {cpu}. Run by: the teacher {engines(0)}, the `.fly` files {engines(1)}, the SVM {engines(-1)}.",
    ]
    return "\n".join(lines)


PEERS = {
    "flyweight-int8": "**Flyweight int8**",
    "flyweight-4bit": "**Flyweight 4-bit codes**",
    "flyweight-2bit": "**Flyweight 2-bit codes**",
    "litert-int8": "LiteRT int8",
    "litert-4bit": "LiteRT 4-bit (one scale a row)",
    "openvino-int8": "OpenVINO int8 (NNCF)",
    "ort-int8": "ONNX Runtime int8",
    "ctranslate2-int8": "CTranslate2 int8",
    "torch-int8": "PyTorch int8",
    "ort-fp32": "ONNX Runtime fp32",
    "torch-fp32": "PyTorch fp32",
}
MODELS = {"bert-base": "BERT-base (12 x 768)", "minilm": "MiniLM-L6 (6 x 384)", "2x128": "2 layers x 128"}


def engine_table() -> str:
    """README's table of runtimes: milliseconds a message of 16 tokens, and times the speed of the best int8 peer."""
    found = json.loads((RESULTS / "engine.json").read_text(encoding="utf-8"))
    run = next(run for run in found["runs"] if run["isa"] == "best")
    cells: dict[str, list[str]] = {name: [] for name in PEERS}
    for model in MODELS:
        [case] = [c for c in run["cases"] if (c["model"], c["tokens"], c["threads"]) == (model, 16, 1)]
        rows = {row["name"]: row for row in case["rows"] if row["mode"] == "warm"}
        for name, row in cells.items():
            r = rows.get(name)
            row.append("-" if r is None else f"{r['p50_ms']:.3g} | {r['ratio_per_call']:.2f}x")
    heads = " | ".join(f"{title}, ms | " for title in MODELS.values())
    lines = [f"| runtime | {heads} |", f"|---|{'--:|' * 2 * len(MODELS)}"]
    lines += [f"| {PEERS[name]} | {' | '.join(row)} |" for name, row in cells.items() if set(row) != {"-"}]
    machine = run["machine"]
    level = {e for c in run["cases"] for r in c["rows"] if r["name"] == "flyweight-int8" for e in [r["variant"]]}
    lines += [
        "",
        "16 tokens in, logits out, batch 1, one thread, all in one process, call by call in turn; medians. x: times "
        f"the speed of the fastest int8 peer of the same run. CPU: {machine['cpu']}; {', '.join(sorted(level))}.",
    ]
    return "\n".join(lines)


METRICS = {"intent_macro_f1": "macro-F1", "intent_accuracy": "accuracy", "span_f1": "span F1"}
SHOWN = ("int8", "static int8", "4-bit codes, GPTQ", "mixed 3 bits, trained", "2-bit trained codes")  # of the recipes


def losses_table() -> str:
    """Loss of each recipe against its MiniLM teacher: a line a recipe, a column a set and metric, with the verdict."""
    found = json.loads((RESULTS / "real_data.json").read_text(encoding="utf-8"))
    cells = {(x["file"], x["set"], x["metric"]): x for x in found["losses"] if x["base"] == "minilm"}
    columns = list(dict.fromkeys((name, metric) for _, name, metric in cells))
    heads = " | ".join(f"{TITLES[name]} {METRICS[metric]}" for name, metric in columns)
    lines = [f"| recipe, bound | {heads} |", f"|---|{'--:|' * len(columns)}"]
    for label in SHOWN:
        row = [cells.get((label, *column)) for column in columns]
        bounds = [x["bound_percent"] for x in row if x]
        if bounds:
            shown = [f"{x['loss_percent']:+.2f}% {x['verdict']} ({x['seeds']})" if x else "-" for x in row]
            lines.append(f"| {label}, {bounds[0]}% | {' | '.join(shown)} |")
    return "\n".join(lines)


def cli_reference() -> str:
    """Every verb: its help, arguments and options."""
    command: Any = typer.main.get_command(app)
    return "\n".join(line for name, verb in command.commands.items() for line in _verb(name, verb)).rstrip()


def _verb(name: str, verb: Any) -> list[str]:
    """The section of a verb; of a group, its own and those of its verbs."""
    text = verb.help.replace("[bold]", "**").replace("[/bold]", "**")
    body = "\n".join(f"    {t}" if t.startswith("flyweight ") else t for t in text.splitlines())
    rows = []
    for p in verb.params:
        if p.name == "help":
            continue
        names = [*p.opts, *p.secondary_opts] if p.param_type_name == "option" else [p.name.upper()]
        label = ", ".join(f"`{name}`" for name in names)
        default = "" if p.default is None or p.default is False or p.required else f" [{p.default}]"
        rows.append(f"| {label} | {getattr(p, 'help', '') or ''}{default} |")
    table = ["| | |", "|---|---|", *rows, ""] if rows else []
    below = [line for sub, verb in getattr(verb, "commands", {}).items() for line in _verb(f"{name} {sub}", verb)]
    return [f"## flyweight {name}", "", body.strip(), "", *table, *below]


def findings_table() -> str:
    """What `flyweight data check` can find."""
    from flyweight.data.check import KINDS

    rows = [f"| {kind} | {severity} | {what} |" for kind, (severity, what) in KINDS.items()]
    return "\n".join(["| finding | severity | counts |", "|---|---|---|", *rows])


def technique_table() -> str:
    """The rooms: name, first docstring line, settings with their defaults."""
    import dataclasses
    import sys

    from flyweight.techniques import TECHNIQUES

    lines = ["| technique | what it does | settings |", "|---|---|---|"]
    for name, cls in TECHNIQUES.items():
        first = (sys.modules[cls.__module__].__doc__ or "").splitlines()[0].partition(": ")[2]
        settings = ", ".join(f"`{f.name}={f.default}`" for f in dataclasses.fields(cls))
        lines.append(f"| `{name}` | {first} | {settings} |")
    return "\n".join(lines)


ENTITY_MEANINGS = {
    "time": "clock times and parts of the day: `7 am`, `noon`, `this evening`",
    "date": "days, weeks, months, holidays: `tomorrow`, `next week`, `12th`",
    "duration": "lengths of time, nights included: `ten minutes`, `two nights`",
    "room": "places in and around the house",
    "item": "things on, for or off the shopping list (not food being cooked or ordered)",
    "city": "cities; in flights and trains with the role `departure` or `destination`",
    "artist": "musicians and bands",
    "quantity": "how many or how much: goods, guests, rooms, percent, volume levels",
    "temperature": "degrees, absolute or relative",
    "flight_number": "`BA 117`",
}


def assistant_intents() -> str:
    """The embedded data set by intent, messages for training and test."""
    train, test = _assistant()
    counts = [Counter(str(m.intent) for m in messages) for messages in (train, test)]
    lines = ["| intent | train | test |", "|---|--:|--:|"]
    lines += [f"| {name} | {n} | {counts[1][name]} |" for name, n in counts[0].items()]
    return "\n".join([*lines, f"| **{len(counts[0])} intents** | **{len(train)}** | **{len(test)}** |"])


def assistant_entities() -> str:
    """The embedded data set by entity type, spans in training and test, of roles too."""
    train, test = _assistant()
    types, labels = (
        [Counter(getattr(e, kind) for m in messages for e in m.entities) for messages in (train, test)]
        for kind in ("entity", "label")
    )
    lines = ["| entity | train | test | marks |", "|---|--:|--:|---|"]
    for name, meaning in ENTITY_MEANINGS.items():
        roles = [label for label in sorted(labels[0]) if label.startswith(f"{name}#")]
        shares = ", ".join(f"{r.partition('#')[2]} {labels[0][r]} / {labels[1][r]}" for r in roles)
        lines.append(f"| {name} | {types[0][name]} | {types[1][name]} | {meaning}{f' ({shares})' if shares else ''} |")
    return "\n".join(lines)


def _assistant() -> tuple[Sequence[Message], Sequence[Message]]:
    data = load_data("assistant", validation=0.0)
    return data.train, data.test


def assistant_scores() -> str:
    """MiniLM, the bundled model and the classic line on the test messages of the embedded data set."""
    found = json.loads((RESULTS / "bundled.json").read_text(encoding="utf-8"))
    lines = [
        "| model | macro-F1 | accuracy | span F1 | out-of-scope AUROC | MB | ms |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["models"]:
        q = row["quality"]
        spans = f"{q['span_f1']:.3f}" if row["tags_entities"] else "-"
        size = "-" if row["size_bytes"] is None else f"{row['size_bytes'] / 1e6:.2f}"
        lines.append(
            f"| {row['name']} | {q['intent_macro_f1']:.3f} | {q['intent_accuracy']:.3f} | {spans} "
            f"| {q['out_of_scope']['auroc']:.3f} | {size} | {row['latency']['mean_ms']:.3f} |"
        )
    return "\n".join(lines)


def data_sets_table() -> str:
    """Every public data set at hand: counted, written and read again."""
    found = json.loads((RESULTS / "data_sets.json").read_text(encoding="utf-8"))
    lines = [
        "| data | messages | intents | entity spans | entity types | Rasa YAML | JSON Lines |",
        "|---|--:|--:|--:|--:|---|---|",
    ]
    for x in found["sets"]:
        n = x["parts"]["all"]
        forms = [_read_back(x["forms"][form]) for form in ("yaml", "jsonl")]
        counts = " | ".join(f"{n[k]:,}" for k in ("messages", "intents", "entity_spans", "entity_types"))
        lines.append(f"| {x['set']} | {counts} | {forms[0]} | {forms[1]} |")
    return "\n".join(lines)


def _read_back(form: dict[str, Any]) -> str:
    if form["equal"] is None:
        return f"refused: {form['refused']}"
    part = " (messages; lookups and regexes are refused)" if "refused" in form else ""
    return ("equal" if form["equal"] else "**differs**") + part


def parity_table() -> str:
    """Largest difference of every base to transformers: PyTorch's hidden states and logits, the engine's logits."""
    found = json.loads((RESULTS / "parity.json").read_text(encoding="utf-8"))
    lines = ["| base | hidden states | logits, PyTorch | logits, engine |", "|---|--:|--:|--:|"]
    for x in found["rows"]:
        d = x["largest_difference"]
        logits = [max(v for k, v in d.items() if k.endswith(who)) for who in ("pytorch", "engine")]
        kind = f"{x['cases']} random shapes" if x["random"] else "real"
        lines.append(f"| {x['base']} ({kind}) | {d['hidden']:.1e} | {logits[0]:.1e} | {logits[1]:.1e} |")
    return "\n".join(lines)
