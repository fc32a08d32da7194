"""Static int8 on validation messages: calibrations, smoothing, fallback; macro-F1, span F1, flips, gaps of the logits.

    python benchmarks/static_int8.py [sara-dedup banking77] [--base minilm] [--seed 0] > static_int8.jsonl

One JSON line a setting, computed in PyTorch as the engine would. `gap` is sum (z - z_float)^2 / sum z_float^2 over all
logits. The test file is never looked at here.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from teachers import teacher

import flyweight as fw
from flyweight.measure.quality import evaluate_answers
from flyweight.techniques.room import Run, Technique
from flyweight.training.calibration import CALIBRATIONS

N_MESSAGES = 256


def settings() -> list[Technique]:
    """Dynamic int8, then static with each calibration, smoothed or not, float attention, and with a fallback list."""
    static: list[Technique] = [
        fw.StaticInt8(calibration=name, smooth=smooth, fallback=None, n_messages=N_MESSAGES)  # type: ignore[arg-type]
        for smooth in (None, 0.5)
        for name in CALIBRATIONS
    ]
    others: list[Technique] = [
        fw.StaticInt8(calibration="mse", attention=False, fallback=None, n_messages=N_MESSAGES),
        fw.StaticInt8(calibration="mse", smooth=None, n_messages=N_MESSAGES),
        fw.StaticInt8(smooth=0.5, n_messages=N_MESSAGES),
        fw.StaticInt8(n_messages=N_MESSAGES),
    ]
    return [fw.Int8(), *static, *others]


def logits(model: fw.NLUModel, texts: list[str]) -> np.ndarray:
    """All logits of all messages, float64."""
    rows = model.logits(model.tokenizer.encode_batch(texts))
    return np.concatenate([a.ravel() for row in rows for a in row if a is not None]).astype(np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=["sara-dedup", "banking77"], metavar="SET")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for name in chosen.sets:
        model, data = teacher(name, chosen.base, chosen.seed)
        texts = [m.text for m in data.validation]
        parent, z = model.answers(texts), logits(model, texts)
        for step in settings():
            start = time.monotonic()
            child = step.apply(model, Run(data, model, seed=chosen.seed, device="cpu", progress=False))
            seconds = time.monotonic() - start
            quality = evaluate_answers(child.answers(texts), data.validation, against=parent)
            gap = logits(child, texts) - z
            found = {
                "set": name, "technique": type(step).__name__, **vars(step), "messages": len(texts),
                "macro_f1": quality.intent_macro_f1, "span_f1": quality.span_f1, "flips": quality.n_flips,
                "losses": quality.to_dict()["losses"], "gap": gap @ gap / (z @ z), "seconds": round(seconds, 1),
                "dynamic": [n for n, m, _ in child.matrices() if m.activations == "int8"],
            }  # fmt: skip
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
