"""Static against dynamic int8 in our engine: one process, call by call in turn, the same weights and tokens.

    .venv/bin/python benchmarks/engine_static.py [--models minilm] [--tokens 8 16 32] [--seconds 2]

ids in, intent logits out, batch 1, one thread, CPU time of the process; each timed call follows an untimed one. Static:
every matrix with a step known beforehand, attention in int8. Steps are of a likely size, not calibrated: time does not
depend on them. Two engines of a pair read one copy of the weights. Where an engine lies in memory makes up to 2% of
difference, more than calls vary: so 12 pairs, each in memory of its own.

    ratio    median over pairs of the median over calls of (dynamic / static), above 1: static is faster; its 95%
             interval by ranks of the pairs

Writes benchmarks/results/engine_static.json: one entry a CPU, level, model and length, replaced by the next run of
the same; each has its date, calls and the load of the machine when it began (jobs ready to run, mean of a minute).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from engine_models import MODELS, message_ids, model_folder

from flyweight.artifact import Artifact
from flyweight.export.fly import contents
from flyweight.forms.int8 import int8_rows
from flyweight.measure.machine import machine
from flyweight.model.linear import Linear, set_form
from flyweight.model.nlu import NLUModel
from flyweight.runtime.native import Native
from flyweight.tokenizer import Encoded

STEP = 2.0**-5  # of activations: +-3.97, as a norm gives them
N_PAIRS = 12
KEY = ("cpu", "level", "model", "n_tokens")  # of an entry
RESULTS = Path(__file__).parent / "results" / "engine_static.json"


def pairs(name: str) -> Iterator[list[Native]]:
    """Pairs of engines on a model in int8, activations dynamic and static; a pair's equal arrays are one array."""
    (dynamic, weights), (static, arrays) = written(name, static=False), written(name, static=True)
    golden = {"golden": {"texts": [], "tolerance": 0.0}}
    for _ in range(N_PAIRS):
        own = {key: array.copy() for key, array in weights.items()}
        shared = {
            key: own[key] if np.array_equal(own.get(key), array) else array.copy() for key, array in arrays.items()
        }
        yield [
            Native(Artifact(Path(f"{name}.fly"), manifest | golden, held, 0))
            for manifest, held in ((dynamic, own), (static, shared))
        ]


def written(name: str, static: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Manifest and arrays of a benchmark model in int8, its activations dynamic or static."""
    model = NLUModel.load(model_folder(name))
    for weight, module, part in model.matrices():
        activations = "float" if part == "embeddings" else "static" if static else "int8"
        set_form(module, int8_rows(module.weight.detach().numpy()), activations)
        if isinstance(module, Linear) and activations == "static":
            module.input_scale = STEP
            if weight.endswith(".attention.qkv"):
                module.output_scales = (STEP, STEP, STEP)
    return contents(model)


def interleaved_us(pair: list[Native], message: Encoded, seconds: float) -> np.ndarray:
    """(calls, 2) microseconds of CPU time; who begins alternates."""
    found: list[list[float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        row = [0.0, 0.0]
        for i in (0, 1) if len(found) % 2 else (1, 0):
            pair[i].logits([message])
            begin = time.process_time_ns()
            pair[i].logits([message])
            row[i] = (time.process_time_ns() - begin) / 1e3
        found.append(row)
    return np.array(found)


def median_interval(values: list[float]) -> tuple[float, float, float]:
    """Median and its 95% interval: the values at ranks n / 2 -+ 0.98 sqrt(n) of n, for any distribution."""
    ordered, n = np.sort(values), len(values)
    rank = max(0, int(n / 2 - 0.98 * np.sqrt(n) - 0.5))
    return float(np.median(ordered)), float(ordered[rank]), float(ordered[n - 1 - rank])


def measured(name: str, held: list[list[Native]], n_tokens: int, seconds: float) -> dict[str, Any]:
    """The entry of one model and length."""
    load = os.getloadavg()[0]
    message = Encoded(message_ids(name, n_tokens), np.zeros(0, np.int64), [])
    us = [interleaved_us(pair, message, seconds) for pair in held]
    ratio, low, high = median_interval([float(np.median(found[:, 0] / found[:, 1])) for found in us])
    dynamic, static = np.median([np.median(found, axis=0) for found in us], axis=0)
    return {
        "model": name,
        "n_tokens": n_tokens,
        "cpu": machine()["cpu"],
        "level": held[0][0].level,
        "n_pairs": len(us),
        "n_calls": sum(len(found) for found in us),
        "dynamic_us": float(dynamic),
        "static_us": float(static),
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "load": load,
        "date": datetime.date.today().isoformat(),
    }


def keep(entry: dict[str, Any]) -> None:
    """Writes an entry in place of the one of the same CPU, level, model and length."""
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"machines": {}, "runs": []}
    key = [entry[k] for k in KEY]
    runs = [run for run in before["runs"] if [run[k] for k in KEY] != key] + [entry]
    runs.sort(key=lambda run: (run["cpu"], run["level"], list(MODELS)[::-1].index(run["model"]), run["n_tokens"]))
    machines = before["machines"] | {entry["cpu"]: machine()}
    result = {"machines": machines, "threads": 1, "clock": "CPU time of the process", "runs": runs}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--seconds", type=float, default=2.0, help="of each pair and length")
    chosen = parser.parse_args()
    for name in chosen.models:
        held = list(pairs(name))  # all at once, so that none takes the place of another
        for n_tokens in chosen.tokens:
            entry = measured(name, held, n_tokens, chosen.seconds)
            keep(entry)
            print(
                f"{name:10}{n_tokens:4} tokens  {entry['level']}  {entry['n_calls']:7} calls  dynamic "
                f"{entry['dynamic_us']:9.1f} us  static {entry['static_us']:9.1f} us  "
                f"ratio {entry['ratio']:.3f} [{entry['ratio_low']:.3f}, {entry['ratio_high']:.3f}]",
                flush=True,
            )


if __name__ == "__main__":
    main()
