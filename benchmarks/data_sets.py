"""Every public data set: read, counted, checked, written in both forms, read again: equal or not.

    python benchmarks/data_sets.py

Reads `assistant` and the folders of FLYWEIGHT_DATA (default ../shared/data). A set's own parts are kept, nothing is
held out. `equal` compares messages in order with their entities, values and roles, and synonyms, lookups and regexes;
a form that cannot hold a set refuses it, with the reason. Times are those of one run. Writes
benchmarks/results/data_sets.json.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from flyweight.data.check import check, count
from flyweight.data.load import load_data
from flyweight.data.messages import NLUData
from flyweight.data.write import Form, bare, write_parts
from flyweight.errors import DataError
from flyweight.measure.machine import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "data_sets.json"
FORMS: tuple[Form, ...] = ("yaml", "jsonl")
T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def read(source: str | Path) -> NLUData:
    return load_data(source, test=0, validation=0)


def content(data: NLUData) -> tuple[Any, ...]:
    return data.train, data.validation, data.test, data.synonyms, data.lookups, data.regexes


def round_trip(data: NLUData, form: Form) -> dict[str, Any]:
    """Whether the set reads back equal, the seconds of writing (with its own check) and reading.

    A set with lookups or regexes is refused by JSON Lines: `refused` says so, the rest is that of its messages alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "set"
        try:
            _, write_s = timed(lambda: write_parts(data, place, form=form))
        except DataError as error:
            alone = bare(data)  # what `flyweight data convert --messages-only` writes
            found = {"equal": None} if content(alone) == content(data) else round_trip(alone, form)
            return found | {"refused": str(error).removeprefix(f"{place}: ")}
        again, read_s = timed(lambda: read(place))
        n_bytes = sum(file.stat().st_size for file in place.iterdir())
    return {"equal": content(again) == content(data), "bytes": n_bytes, "write_s": write_s, "read_s": read_s}


def measured(name: str, source: str | Path) -> dict[str, Any]:
    try:
        data, read_s = timed(lambda: read(source))
    except DataError as error:
        return {"set": name, "refused": str(error).removeprefix(f"{source}")}
    findings, check_s = timed(lambda: check(data, n_examples=0))
    parts = data.parts | {"all": data.messages}
    return {
        "set": name,
        "parts": {part: asdict(count(messages)) for part, messages in parts.items() if messages},
        "read_s": read_s,
        "check_s": check_s,
        "findings": {f.kind: f.count for f in findings},
        "forms": {form: round_trip(data, form) for form in FORMS},
    }


def main() -> None:
    folder = Path(os.environ.get("FLYWEIGHT_DATA", ROOT / ".." / "shared" / "data"))
    sources = {"assistant": "assistant"} | {p.name: p for p in sorted(folder.iterdir()) if p.is_dir()}
    rows = [measured(name, source) for name, source in sources.items()]
    print(
        f"{'set':16} {'messages':>8} {'intents':>7} {'spans':>6} {'types':>5}  {'read':>6} {'check':>6}  yaml     jsonl"
    )
    for row in rows:
        if "refused" in row:
            print(f"{row['set']:16} not read: {row['refused']}")
            continue
        n = row["parts"]["all"]
        numbers = f"{n['messages']:8} {n['intents']:7} {n['entity_spans']:6} {n['entity_types']:5}"
        seconds = f"{row['read_s']:5.2f}s {row['check_s']:5.2f}s"
        words = [{True: "equal", False: "UNEQUAL", None: "refused"}[row["forms"][form]["equal"]] for form in FORMS]
        print(f"{row['set']:16} {numbers}  {seconds}  {words[0]:8} {words[1]}")
    for row in rows:
        for form, made in row.get("forms", {}).items():
            if "refused" in made:
                print(f"{row['set']}, {form}: {made['refused']}")
    RESULTS.write_text(json.dumps({"machine": machine(), "sets": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
