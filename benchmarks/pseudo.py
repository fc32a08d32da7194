"""Real against pseudo quantization: the same codes executed as codes, and rebuilt as floats before use.

    python benchmarks/pseudo.py [SET ...] [--base minilm] [--seed 0] [--recipes "4-bit codes" ...] [--calls 300]

Answers: the engine (real) against the workshop's simulation of the same file (pseudo: the same int8 centres and
activation quantizer, float products) on all test messages. A flip is an answer that changed. Two right evaluations of
one file differ where an int8 step moved: s = the RMS effect of noise of 2^-10 on the embeddings (half of the file's
golden tolerance) is the standard deviation of a logit, s sqrt 2 of a difference of two. A flip whose two best logits
lie within 4 of these is rounding (a message in 16,000 by chance, and thousands are asked); any other is an error.
Speed and memory: the codes, int8, and the same weights as floats in the engine and in PyTorch; milliseconds a message,
batch 1, one thread, tokenizer included, interleaved; memory of the serving process less its imports.
Writes benchmarks/results/pseudo.json: one entry a set, base, seed and recipe.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from compressed import RECIPES, compressed
from teachers import teacher

import flyweight as fw
from flyweight.measure.latency import compare, ratio, single_thread
from flyweight.measure.machine import machine
from flyweight.measure.memory import serving_memory

RESULTS = Path(__file__).parent / "results" / "pseudo.json"
GAP_TOLERANCE = 4 * 2**0.5 / 2  # in golden tolerances
CODES = ("4-bit codes", "2-bit trained codes")


def flips(model: fw.NLUModel, nlu: Any, texts: list[str]) -> list[dict[str, Any]]:
    """Messages that the engine answers otherwise than the workshop, with the gap of the logits that changed places."""
    encoded = model.tokenizer.encode_batch(texts)
    found = []
    for i, (mine, theirs) in enumerate(zip(model.logits(encoded), nlu.engine.logits(encoded), strict=True)):
        changed = [np.sort(mine[0])[-2:]] if mine[0].argmax() != theirs[0].argmax() else []
        if mine[1] is not None and theirs[1] is not None:
            words = mine[1].argmax(axis=1) != theirs[1].argmax(axis=1)
            changed += list(np.sort(mine[1][words], axis=1)[:, -2:])
        if changed:
            found.append({"message": i, "gap": max(float(b - a) for a, b in changed)})
    return found


def measure(name: str, base: str, seed: int, label: str, n_calls: int) -> dict[str, Any]:
    """One compressed model, real and pseudo."""
    _, data = teacher(name, base, seed)
    found, int8 = compressed(name, base, seed, label), compressed(name, base, seed, "int8")
    model, nlu = fw.NLUModel.load(found.folder), fw.load(found.fly)
    texts = [m.text for m in data.test]
    tolerance = nlu.artifact.manifest["golden"]["tolerance"]
    changed = flips(model, nlu, texts)
    floats = model.copy().unpack()  # the weights that the codes decode to, as floats
    with tempfile.TemporaryDirectory() as folder:
        files = {label: found.fly, "int8": int8.fly, "floats rebuilt, engine": fw.save(floats, Path(folder) / "f.fly")}
        parsers = {key: fw.load(path).parse for key, path in files.items()} | {"floats rebuilt, PyTorch": floats.parse}
        with single_thread():
            timed = compare(parsers, texts, n_calls=n_calls)
        memory = {key: serving_memory(path).resident_mb for key, path in files.items()}
        sizes = {key: path.stat().st_size for key, path in files.items()}
    return {
        "set": name,
        "base": Path(base).name,
        "seed": seed,
        "recipe": label,
        "n_messages": len(texts),
        "n_flips": len(changed),
        "flip_percent": 100 * len(changed) / len(texts),
        "tolerance": tolerance,
        "gap_tolerance": GAP_TOLERANCE * tolerance,
        "largest_gap": max((f["gap"] for f in changed), default=0.0),
        "ms": {key: latency.to_dict() for key, latency in timed.items()},
        "times_faster": {key: ratio(latency, timed[label]).of_means for key, latency in timed.items()},
        "serving_memory_mb": memory,
        "size_bytes": sizes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=["banking77"], metavar="SET")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipes", nargs="+", default=list(CODES), choices=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--calls", type=int, default=300)
    chosen = parser.parse_args()
    for name in chosen.sets:
        for label in chosen.recipes:
            run = measure(name, chosen.base, chosen.seed, label, chosen.calls)
            keep(run)
            times = ", ".join(f"{k} {v['p50_ms']:.3f}" for k, v in run["ms"].items())
            print(
                f"{name} {run['base']} {label}: flips {run['n_flips']} of {run['n_messages']} "
                f"({run['flip_percent']:.3f}%), largest gap {run['largest_gap']:.4f}, "
                f"allowed {run['gap_tolerance']:.4f}; "
                f"p50 ms {times}; MB {run['serving_memory_mb']}",
                flush=True,
            )


def keep(run: dict[str, Any]) -> None:
    """Put one entry into the results in place of the same one."""
    entries = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else []
    same = ("set", "base", "seed", "recipe")
    entries = [e for e in entries if [e[k] for k in same] != [run[k] for k in same]] + [run]
    RESULTS.write_text(json.dumps({"machine": machine(), "threads": 1, "runs": entries}, indent=1) + "\n")


if __name__ == "__main__":
    main()
