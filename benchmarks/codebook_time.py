"""How long k-means of a BERT-base-size model takes: 12 layers x 768, 110 M weights, 16 centres a row.

    python benchmarks/codebook_time.py

Random Gaussian weights with outliers: time does not depend on the values. Writes benchmarks/results/codebook_time.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from flyweight.answers import Labels
from flyweight.data.messages import NLUData
from flyweight.measure.machine import machine
from flyweight.model.checkpoints import resolve_base
from flyweight.model.encoder import EncoderConfig, LayerShape
from flyweight.model.nlu import NLUModel
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.room import Run
from flyweight.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results" / "codebook_time.json"


def main() -> None:
    torch.manual_seed(0)
    tokenizer = Tokenizer.from_file(resolve_base("minilm") / "tokenizer.json", 128)
    config = EncoderConfig(
        vocab_size=30522,
        hidden=768,
        head_size=64,
        layers=(LayerShape(heads=12, ffn=3072),) * 12,
        max_positions=512,
    )
    model = NLUModel(config, tokenizer, Labels(tuple(f"intent {i}" for i in range(77))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.001)
    result = {"machine": machine(), "n_parameters": model.n_parameters()}
    for granularity in ("row", "matrix"):
        start = time.perf_counter()
        small = Codebook(granularity=granularity).apply(model, Run(NLUData(()), model))
        seconds = time.perf_counter() - start
        result[granularity] = {"seconds": seconds, "bytes": small.size_bytes()}
        print(f"{granularity}: {seconds:.1f} s, {small.size_bytes() / 1e6:.1f} MB")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
