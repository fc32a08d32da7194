"""Sparse against dense matrices in our engine: BERT-base's encoder, one process, call by call in turn.

    .venv/bin/python benchmarks/sparse.py [--tokens 16 8] [--calls 60] [--model bert-base]

ids in, intent logits out, batch 1, one thread, CPU time of the process; each timed call follows an untimed one. Random
weights under random masks: time depends on how many survive and where, not on their values.

    unstructured   a mask of single weights, stored as such: decoded to a buffer, multiplied like dense ones
    in blocks      the same weights, of which whole groups of four are stored where any survives
    1x4            a mask of groups of four columns
    ratio          median over calls of (dense int8's time / this one's), above 1: faster; its 95% interval by bootstrap

Writes benchmarks/results/sparse.json, one entry a CPU, level and model.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from engine_models import MODELS, message_ids, model_folder

from flyweight.artifact import Artifact, matrix_layout
from flyweight.export.fly import contents
from flyweight.forms import Codes, Form, Int8, Sparse, describe
from flyweight.forms.int8 import int8_rows
from flyweight.measure.machine import machine
from flyweight.model.nlu import NLUModel
from flyweight.runtime.native import Native
from flyweight.tokenizer import Encoded

RESULTS = Path(__file__).parent / "results" / "sparse.json"
SPARSITIES = (0.5, 0.7, 0.8, 0.9)
TARGETS = {0.5: 1.5, 0.8: 1.9, 0.9: 2.2}  # of sparse int8 against dense int8, 16 tokens
N_RESAMPLES = 1000


def variants() -> dict[str, tuple[str, float]]:
    """Name -> how a matrix is stored, and the share of its weights that is gone."""
    found = {"dense int8": ("int8", 0.0), "dense 4 bits": ("4 bits", 0.0), "dense 2 bits": ("2 bits", 0.0)}
    for kind in ("int8 unstructured", "int8 in blocks", "int8 1x4", "4 bits unstructured", "4 bits 1x4"):
        found |= {f"{kind}, {s:.0%}": (kind, s) for s in SPARSITIES}
    return found


def form_of(kind: str, sparsity: float, w: np.ndarray, rng: np.random.Generator) -> Form:
    """A matrix of w's shape in that form."""
    values: Int8 | Codes = int8_rows(w)
    if "bits" in kind:
        k = 2 ** int(kind[0])
        codes = rng.integers(0, k, w.shape, np.uint8)
        table = np.sort(rng.integers(-127, 128, (len(w), k)), axis=1).astype(np.int8)
        values = Codes(codes, table, np.full(len(w), 1e-3, np.float32))
    if not sparsity:
        return values
    block = 4 if "1x4" in kind else 1
    keep = rng.random((w.shape[0], -(-w.shape[1] // block))) >= sparsity
    form: Form | None = Sparse(values, np.repeat(keep, block, axis=1)[:, : w.shape[1]])
    if "in blocks" in kind and isinstance(form, Sparse):
        form = form.in_blocks()
    assert form is not None
    return form


def engine(model: NLUModel, kind: str, sparsity: float) -> tuple[Native, int]:
    """An engine whose encoder is in that form, heads int8; and the bytes of its encoder's matrices."""
    manifest, arrays = contents(model)
    rng, size = np.random.default_rng(0), 0
    for name, module, part in model.matrices():
        if part == "embeddings":
            continue
        w = module.weight.detach().numpy()
        form = form_of(kind, sparsity, w, rng) if part != "heads" else int8_rows(w)
        entry = describe(form)
        layout = matrix_layout(name, entry, "int8")
        stored = form.arrays(layout)
        arrays = {k: a for k, a in arrays.items() if not k.startswith(f"{name}.") or k == f"{name}.bias"}
        arrays |= {f"{name}.{k}": a for k, a in stored.items()}
        manifest["weights"][name] = entry | {"activations": "int8", "layout": layout}
        size += sum(a.nbytes for a in stored.values()) if part != "heads" else 0
    manifest["golden"] = {"texts": [], "tolerance": 0.0}
    return Native(Artifact(Path(f"{kind}.fly"), manifest, arrays, 0)), size


def interleaved_ms(engines: list[Native], message: Encoded, n_calls: int) -> np.ndarray:
    """(n_calls, engines) milliseconds of CPU time; who begins alternates."""
    found = np.empty((n_calls, len(engines)))
    for call in range(n_calls):
        for i in np.roll(np.arange(len(engines)), call):
            engines[i].logits([message])
            begin = time.process_time_ns()
            engines[i].logits([message])
            found[call, i] = (time.process_time_ns() - begin) / 1e6
    return found


def rows_of(names: list[str], ms: np.ndarray, sizes: list[int]) -> list[dict[str, Any]]:
    """A row a variant: milliseconds and the ratio to the first."""
    rng, rows = np.random.default_rng(0), []
    for i, name in enumerate(names):
        ratios = ms[:, 0] / ms[:, i]
        resampled = np.median(rng.choice(ratios, (N_RESAMPLES, len(ratios))), axis=1)
        low, high = np.percentile(resampled, [2.5, 97.5])
        rows.append(
            {
                "name": name,
                "bytes": sizes[i],
                "best_ms": float(ms[:, i].min()),
                "p50_ms": float(np.median(ms[:, i])),
                "ratio": float(np.median(ratios)),
                "ratio_low": float(low),
                "ratio_high": float(high),
            }
        )
    return rows


def write(run: dict[str, Any]) -> None:
    """Put the run in place of the one on the same CPU, level and model."""
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.is_file() else []
    key = [run["machine"]["cpu"], run["level"], run["model"]]
    kept = [r for r in runs if [r["machine"]["cpu"], r["level"], r["model"]] != key]
    RESULTS.write_text(json.dumps({"runs": [*kept, run]}, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="bert-base")
    parser.add_argument("--tokens", type=int, nargs="*", default=[16, 8])
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--only", default="", help="part of the variants' names; nothing is written then")
    args = parser.parse_args()
    model = NLUModel.load(model_folder(args.model))
    chosen = {name: v for name, v in variants().items() if name == "dense int8" or args.only in name}
    built = [engine(model, *how) for how in chosen.values()]
    engines, sizes = [e for e, _ in built], [n for _, n in built]
    cases = []
    for tokens in args.tokens:
        message = Encoded(message_ids(args.model, tokens), np.zeros(0, np.int64), [])
        load = os.getloadavg()[0]
        rows = rows_of(list(chosen), interleaved_ms(engines, message, args.calls), sizes)
        cases.append({"tokens": tokens, "threads": 1, "calls": args.calls, "load_average": load, "rows": rows})
        print(f"{args.model}, {tokens} tokens, {engines[0].level}, load {load:.1f}")
        for row in rows:
            interval = f"[{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"
            print(
                f"  {row['name']:26} {row['bytes'] / 1e6:6.1f} MB  best {row['best_ms']:6.2f} ms  "
                f"median {row['p50_ms']:6.2f} ms  ratio {row['ratio']:.2f} {interval}"
            )
    if not args.only:
        targets = {f"{s:.0%}": ratio for s, ratio in TARGETS.items()}
        write(
            {"model": args.model, "level": engines[0].level, "machine": machine(), "targets": targets, "cases": cases}
        )


if __name__ == "__main__":
    main()
