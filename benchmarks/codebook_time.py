"""How long 4-bit codes of a BERT-base-size model take: 12 layers x 768, 110 M weights, 16 centres.

    python benchmarks/codebook_time.py

k-means (row, group, matrix; weighted by sensitivity) and GPTQ on both grids. Random Gaussian weights with outliers,
messages of the embedded data set: time does not depend on the values. CPU seconds stand beside seconds: on a busy
machine half of them is what two free cores need at best. Writes benchmarks/results/codebook_time.json.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from flyweight.answers import Labels
from flyweight.data.load import load_data
from flyweight.measure.machine import machine
from flyweight.model.checkpoints import resolve_base
from flyweight.model.encoder import EncoderConfig, LayerShape
from flyweight.model.nlu import NLUModel
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.gptq import GPTQ
from flyweight.techniques.room import Run, Technique
from flyweight.tokenizer import Tokenizer

TIMED: dict[str, Technique] = {
    "row": Codebook(),
    "group": Codebook(granularity="group"),
    "matrix": Codebook(granularity="matrix"),
    "fisher": Codebook(sensitivity="fisher"),
    "gptq kmeans": GPTQ(),
    "gptq uniform": GPTQ(grid="uniform"),
}
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
    data = load_data("assistant")
    model = NLUModel(config, tokenizer, Labels(tuple(sorted({m.intent for m in data.train if m.intent})))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter) * (torch.rand_like(parameter) < 0.001)
    result = {"machine": machine(), "n_parameters": model.n_parameters()}
    for name, step in TIMED.items():
        start, cpu = time.perf_counter(), time.process_time()
        small = step.apply(model, Run(data, model, device="cpu"))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        result[name] = {"seconds": seconds, "cpu_seconds": cpu, "bytes": small.size_bytes()}
        print(f"{name}: {seconds:.1f} s, {cpu:.1f} CPU s, {small.size_bytes() / 1e6:.1f} MB", flush=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
