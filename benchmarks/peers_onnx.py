"""The benchmark's model as ONNX files, and ONNX Runtime's quantizers.

A graph written in ONNX Runtime's own fused operators (Attention and QAttention, SkipLayerNormalization, BiasGelu) was
measured too: it was as fast as PyTorch's export or slower, for every model and length, so it is not made here.
"""

from __future__ import annotations

from pathlib import Path

import onnx


def export_onnx(folder: Path, path: Path, one_qkv: bool, masked: bool = False, tags: bool = False) -> None:
    """PyTorch's exporter: ids (B, T) int64, with `masked` also mask (B, T) int64 -> logits (B, C); B and T are free.

    tags: also the tag logits (B, T, n_tags) of a model with an entity head.
    """
    import torch
    from peers_bert import plain_bert

    module = plain_bert(folder, one_qkv, tags)
    names = ["ids", "mask"] if masked else ["ids"]
    per_token = [*names, "tags"] if module.tag_head is not None else names
    torch.onnx.export(
        module,
        (torch.ones((2, 16), dtype=torch.int64),) * len(names),
        str(path),
        input_names=names,
        output_names=["logits", *per_token[len(names) :]],
        dynamic_axes={name: {0: "B", 1: "T"} for name in per_token},
        opset_version=17,
        dynamo=False,
    )


def quantize_onnx(source: Path, path: Path, per_channel: bool) -> None:
    """ONNX Runtime's dynamic int8 quantization of all matrix products with weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        str(source),
        str(path),
        per_channel=per_channel,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )


def quantize_nbits(source: Path, path: Path, bits: int, block: int) -> None:
    """MatMulNBits: weights of 4 or 8 bits in blocks, activations int8 (accuracy level 4)."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(str(source)), bits=bits, block_size=block, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    onnx.save(quantizer.model.model, str(path))
