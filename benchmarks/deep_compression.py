"""The chain of Deep Compression: drop words, prune, share weights, entropy-code; megabytes at each link, and ms.

    python benchmarks/deep_compression.py [sara-dedup] [--seeds 0] [--base minilm] [--recipes "deep compression" ...]

Megabytes of the .fly file after each technique of the chain and of its transport form (flyweight pack), against the
float32 weights of the teacher; bits a weight in the file, packed, and the entropy that no coder of single weights goes
below. Loss on the test messages against the teacher in PyTorch fp32 with a 95% paired bootstrap interval, milliseconds
a message in the engine, batch 1, one thread, tokenizer included, interleaved with int8. Models are made once and found
in the cache (compressed.py). Writes benchmarks/results/deep_compression.json; rows of other recipes stay.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from compressed import CHAINS, compressed
from real_data import keep, measure

from flyweight import transport

RESULTS = Path(__file__).parent / "results" / "deep_compression.json"
DENSE = "int8"


def links(name: str, base: str, seed: int, label: str, teacher_bytes: int) -> dict[str, Any]:
    """Bytes after each technique and packed; bits a weight."""
    found = compressed(name, base, seed, label)
    with tempfile.TemporaryDirectory() as folder:
        packed = transport.pack(found.fly, Path(folder) / "model.fly.zst")
    receipts = [step for step in found.made["receipts"] if "technique" in step]
    return {
        "file_bytes": {step["technique"]: step["file_bytes"] for step in receipts},
        "packed_bytes": packed.packed_bytes,
        "times_smaller": teacher_bytes / packed.packed_bytes,
        "bits_a_weight": {"file": packed.plain_bits, "packed": packed.packed_bits, "entropy": packed.entropy_bits},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", default=["sara-dedup"], metavar="SET")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--recipes", nargs="+", default=list(CHAINS), choices=list(CHAINS), metavar="RECIPE")
    parser.add_argument("--calls", type=int, default=300, help="timed calls a model")
    chosen = parser.parse_args()
    for name in chosen.sets:
        for seed in chosen.seeds:
            labels = [DENSE, *chosen.recipes]
            run = measure(name, chosen.base, seed, labels, chosen.calls)
            for row in run["rows"]:
                if row["name"] in labels:
                    row["chain"] = links(name, chosen.base, seed, row["name"], run["teacher_bytes"])
            keep(run, RESULTS)
            for row in run["rows"]:
                if chain := row.get("chain"):
                    losses = {k: round(v["loss_percent"], 2) for k, v in row["quality"]["losses"].items()}
                    print(
                        f"{name} seed {seed} {row['name']}: {json.dumps(chain)} loss {losses} "
                        f"ms {row['latency']['mean_ms']:.3f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
