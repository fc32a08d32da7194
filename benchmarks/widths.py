"""Awkward widths in the engine: is a matrix of 1000 or 333 rows slower than one of the next multiple of 64?

    python benchmarks/widths.py [--model minilm] [--tokens 8 16 32] [--calls 400]

FFN widths, numbers of heads and hidden sizes, the odd one timed in turn with the next round one: an int8 encoder as
deep as the model, ids in, logits out, batch 1, one thread, random weights. Round: a multiple of 64, and of heads those
whose size is one. ratio: median over calls of (odd ms / round ms); weights: the same of the encoder's weights, which
the ratio would be if padding cost nothing and all time went into weights. Above 1 the awkward width is slower than the
wider round one. Writes benchmarks/results/widths.json: one entry a CPU, level and model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from engine_models import MODELS, message_ids, model_folder

import flyweight as fw
from flyweight.analyse.shapes import compare_engines, engine_of, packed_at_random
from flyweight.measure.latency import single_thread
from flyweight.measure.machine import machine
from flyweight.model.encoder import EncoderConfig, LayerShape
from flyweight.tokenizer import Encoded

RESULTS = Path(__file__).parent / "results" / "widths.json"
FFN = (33, 100, 333, 500, 1000, 1500)
HEADS = (1, 3, 5, 7, 9, 11)
HIDDEN = (100, 200, 333, 350)


def round_up(n: int, step: int) -> int:
    """The next multiple of step."""
    return -(-n // step) * step


def pairs(config: EncoderConfig) -> list[tuple[str, int, int, EncoderConfig, EncoderConfig]]:
    """(what, odd, round, both shapes); all else is the model's own."""
    layer, n = config.layers[0], len(config.layers)
    step = max(1, 64 // config.head_size)

    def with_layer(heads: int, ffn: int) -> EncoderConfig:
        return replace(config, layers=(LayerShape(heads=heads, ffn=ffn),) * n)

    found = []
    for odd in (f for f in FFN if f < layer.ffn):
        wide = round_up(odd, 64)
        found.append(("ffn", odd, wide, with_layer(layer.heads, odd), with_layer(layer.heads, wide)))
    for odd in (h for h in HEADS if h < layer.heads and h % step):
        wide = round_up(odd, step)
        found.append(("heads", odd, wide, with_layer(odd, layer.ffn), with_layer(wide, layer.ffn)))
    for odd in (d for d in HIDDEN if d < config.hidden):
        wide = round_up(odd, 64)
        found.append(("hidden", odd, wide, replace(config, hidden=odd), replace(config, hidden=wide)))
    return found


def weights(config: EncoderConfig) -> int:
    """Of the encoder's layers."""
    return sum(config.hidden * (4 * s.heads * config.head_size + 2 * s.ffn) for s in config.layers)


def measure(model: fw.NLUModel, name: str, tokens: list[int], n_calls: int) -> list[dict[str, Any]]:
    """A row a pair and number of tokens."""
    rows = []
    for what, odd, wide, narrow, full in pairs(model.encoder.config):
        with tempfile.TemporaryDirectory() as folder, single_thread():
            engines = {
                key: engine_of(packed_at_random(model, config, 8), Path(folder) / f"{key}.fly")
                for key, config in (("odd", narrow), ("round", full))
            }
            for n in tokens:
                encoded = [Encoded(message_ids(name, n, seed), np.zeros(0, np.int64), []) for seed in range(8)]
                timed = compare_engines(engines, encoded, n_calls)
                row = {"what": what, "odd": odd, "round": wide, "tokens": n}
                row |= {f"{key}_ms": float(np.median(ms)) for key, ms in timed.items()}
                row["ratio"] = float(np.median(timed["odd"] / timed["round"]))
                rows.append(row | {"weights": weights(narrow) / weights(full)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", choices=MODELS)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--calls", type=int, default=400)
    chosen = parser.parse_args()
    model, facts = fw.NLUModel.load(model_folder(chosen.model)), machine()
    entry = {"machine": facts, "threads": 1, "model": chosen.model}
    entry["rows"] = measure(model, chosen.model, chosen.tokens, chosen.calls)

    def key(of: dict[str, Any]) -> list[str]:
        return [of["machine"]["cpu"], of["machine"]["engine"]["level"], of["model"]]

    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    kept = [e for e in kept if key(e) != key(entry)] + [entry]
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
