"""Convert a model folder for LiteRT: runs in an environment of its own, since litert-torch pins much (see peers.py).

    python benchmarks/peers_litert.py FOLDER OUT --tokens 16 32 --qkv 1 --recipes dynamic_wi8_afp32 dynamic_wi4_afp32

One conversion a length, then one file a recipe of ai_edge_quantizer: OUT/RECIPE-qkv1-16.tflite (with a batch: 8x16).
--whole: the graph of one message that may be padded, with a mask and all heads (see PlainBert's tags).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import litert_torch
import torch
from ai_edge_quantizer import quantizer, recipe
from peers_bert import plain_bert


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, nargs="+", required=True)
    parser.add_argument("--batch", type=int, default=1, help="above 1 the graph also takes a mask")
    parser.add_argument("--qkv", type=int, choices=(1, 3), default=1, help="matrices that Q, K and V are")
    parser.add_argument("--whole", action="store_true", help="take a mask, give the tags of a model with entities too")
    parser.add_argument("--recipes", nargs="+", required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    module = plain_bert(chosen.folder, chosen.qkv == 1, chosen.whole)
    for tokens in chosen.tokens:
        convert(module, tokens, chosen)


def convert(module: torch.nn.Module, tokens: int, chosen: argparse.Namespace) -> None:
    """All recipes of one length."""
    # Two tensors: one that is given twice becomes one input, which then is both ids and mask.
    ids, mask = (torch.ones((chosen.batch, tokens), dtype=torch.int32) for _ in range(2))
    shape = f"{tokens}" if chosen.batch == 1 else f"{chosen.batch}x{tokens}"
    with tempfile.TemporaryDirectory(dir=chosen.out) as folder:
        floats, partial = Path(folder) / "float32.tflite", Path(folder) / "quantized.tflite"
        masked = chosen.batch > 1 or chosen.whole
        litert_torch.convert(module, (ids, mask) if masked else (ids,)).export(str(floats))
        for name in chosen.recipes:
            made = quantizer.Quantizer(str(floats), getattr(recipe, name)()).quantize()
            made.export_model(str(partial), overwrite=True)
            partial.replace(chosen.out / f"{name}-qkv{chosen.qkv}-{shape}.tflite")


if __name__ == "__main__":
    main()
