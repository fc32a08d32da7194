"""The engines that ours is measured against: one table, every entry with all the variants that might be its fastest.

Each peer gets the same float32 weights (PlainBert of peers_bert.py), converts them with its own tools, and answers
ids (T,) -> intent logits (C,). Files are made once, in FLYWEIGHT_CACHE/bench/MODEL/peers. `fastest` opens all variants
of a peer, times them in turn and keeps the fastest: a peer is never held back by our choice of settings.

PyTorch, ONNX Runtime, OpenVINO, CTranslate2 and the LiteRT interpreter live in one environment, LiteRT's converter in
another: benchmarks/peers_env.sh makes both.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter_ns, process_time_ns

import numpy as np
from engine_models import CACHE, message_ids, model_folder

Call = Callable[[np.ndarray], np.ndarray]  # ids (T,) int32 -> logits (C,) float32
Open = Callable[[str, int, int], Call]  # model, tokens, threads
CONVERTER = Path(os.environ.get("FLYWEIGHT_CONVERTER", CACHE.parent / "convert-venv" / "bin" / "python"))
PACKAGES = ("torch", "onnxruntime", "onnx", "openvino", "nncf", "ctranslate2", "ai-edge-litert")
N_TUNING_CALLS = 12
# int8; 4 bits: one scale a row, one scale every 32 weights; 2 bits, one scale a row. Activations int8, dynamic.
LITERT_RECIPES = ("dynamic_wi8_afp32", "dynamic_wi4_afp32", "dynamic_wi4b32_afp32", "dynamic_wi2c_afp32")


@dataclass(frozen=True)
class Peer:
    """bits: of a weight; variants: name -> how to open it; isa: what can hold it to an older instruction set."""

    bits: int
    variants: dict[str, Open]
    isa: str


@dataclass(frozen=True)
class Opened:
    """A peer's fastest variant, ready to be called."""

    name: str
    variant: str
    bits: int
    call: Call


def fastest(name: str, model: str, tokens: int, threads: int) -> Opened:
    """Open every variant of a peer, time them call by call in turn, keep the one with the quickest call."""
    calls, failures = {}, []
    for variant, opener in PEERS[name].variants.items():
        try:
            calls[variant] = opener(model, tokens, threads)
        except Exception as error:  # a peer that cannot run a variant is no reason to stop; none at all is reported
            lines = str(error).strip().splitlines() or [type(error).__name__]
            failures.append(f"{variant}: {lines[-1][:160]}")
    if not calls:
        raise RuntimeError("; ".join(failures))
    chosen = next(iter(calls))
    if len(calls) > 1:
        ids = message_ids(model, tokens)
        chosen = quickest(calls, ids, N_TUNING_CALLS, threads)
    return Opened(name, chosen, PEERS[name].bits, calls[chosen])


def quickest(calls: dict[str, Callable], argument: object, rounds: int, threads: int) -> str:
    """The name of the callable with the quickest call; each timed call right after an untimed one of the same.

    One thread: in CPU time, which a busy machine does not change much.
    """
    clock = process_time_ns if threads == 1 else perf_counter_ns
    taken: dict[str, list[int]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call(argument)
            begin = clock()
            call(argument)
            taken[name].append(clock() - begin)
    return min(taken, key=lambda name: min(taken[name]))


def made(model: str, name: str, make: Callable[[Path], None]) -> Path:
    """A file in the peers' folder of a model, made when it is not there, whole or not at all."""
    path = CACHE / model / "peers" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial_path = path.with_name(f"part-{name}")
        make(partial_path)
        partial_path.replace(path)
    return path


def peer_versions() -> dict[str, str]:
    """Versions of the peers that are installed here."""
    from flyweight.measure.machine import versions

    return versions(PACKAGES)


# --- PyTorch


def open_torch(one_qkv: bool, engine: str | None, model: str, tokens: int, threads: int) -> Call:
    """Eager PyTorch; `engine` names the backend of torch.ao's dynamic int8 linears, None is float32."""
    import torch
    from peers_bert import plain_bert

    torch.set_num_threads(threads)
    module = plain_bert(model_folder(model), one_qkv)
    if engine is not None:
        torch.backends.quantized.engine = engine
        module = torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)

    def call(ids: np.ndarray) -> np.ndarray:
        if engine is not None and torch.backends.quantized.engine != engine:
            torch.backends.quantized.engine = engine
        with torch.inference_mode():
            return module(torch.from_numpy(ids)[None])[0].numpy()

    return call


# --- ONNX Runtime


def onnx_file(model: str, one_qkv: bool, masked: bool = False) -> Path:
    """Float32, with free batch and length."""
    from peers_onnx import export_onnx

    name = f"float32-qkv{1 if one_qkv else 3}{'-masked' if masked else ''}.onnx"
    return made(model, name, lambda path: export_onnx(model_folder(model), path, one_qkv, masked))


def onnx_int8_file(model: str, one_qkv: bool, per_channel: bool, masked: bool = False) -> Path:
    """Signed weights: unsigned ones were 1.3 to 1.6 times slower here; reduce_range changes no time with VNNI."""
    from peers_onnx import quantize_onnx

    source = onnx_file(model, one_qkv, masked)
    name = source.name.replace("float32", "int8-channel" if per_channel else "int8-matrix")
    return made(model, name, lambda path: quantize_onnx(source, path, per_channel))


def onnx_nbits_file(model: str, bits: int, block: int) -> Path:
    """MatMulNBits."""
    from peers_onnx import quantize_nbits

    source = onnx_file(model, True)
    return made(model, f"{bits}bit-{block}.onnx", lambda path: quantize_nbits(source, path, bits, block))


def ort_session(path: Path, threads: int) -> object:
    """All graph optimisations, `threads` threads within an operator."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def open_ort(file: Callable[[str], Path], model: str, tokens: int, threads: int) -> Call:
    """One session on a file."""
    session = ort_session(file(model), threads)
    return lambda ids: session.run(None, {"ids": ids[None].astype(np.int64)})[0][0]


# --- OpenVINO


def calibration(model: str) -> list[np.ndarray]:
    """24 messages of 8 to 32 tokens for static quantization."""
    return [message_ids(model, n, seed)[None].astype(np.int64) for seed in range(8) for n in (8, 16, 32)]


def openvino_file(model: str, one_qkv: bool, kind: str, masked: bool = False) -> Path:
    """kind: float32; nncf (static int8, transformer preset); INT8_SYM or INT4_SYM (weights only)."""
    import openvino

    def make(path: Path) -> None:
        found = openvino.Core().read_model(str(onnx_file(model, one_qkv, masked)))
        openvino.save_model(_quantized(found, kind, model, masked), str(path), compress_to_fp16=False)
        weights = path.with_suffix(".bin")
        weights.replace(weights.with_name(weights.name.removeprefix("part-")))

    return made(model, f"{kind}-qkv{1 if one_qkv else 3}{'-masked' if masked else ''}.xml", make)


def _quantized(found: object, kind: str, model: str, masked: bool) -> object:
    if kind == "float32":
        return found
    import nncf

    nncf.set_log_level(logging.ERROR)
    with redirect_stdout(sys.stderr):  # its progress bars
        return _by_nncf(found, kind, model, masked)


def _by_nncf(found: object, kind: str, model: str, masked: bool) -> object:
    import nncf

    if kind == "nncf":
        inputs = [(ids, np.ones_like(ids)) if masked else ids for ids in calibration(model)]
        return nncf.quantize(found, nncf.Dataset(inputs), model_type=nncf.ModelType.TRANSFORMER, subset_size=24)
    settings = {"group_size": 128, "ratio": 1.0, "all_layers": True} if kind.startswith("INT4") else {}
    return nncf.compress_weights(found, mode=getattr(nncf.CompressWeightsMode, kind), **settings)


def open_openvino(one_qkv: bool, kind: str, precision: str, model: str, tokens: int, threads: int) -> Call:
    """Latency hint, length fixed (free lengths were 1.1 to 1.4 times slower here).

    Weight-only files: activations int8 in groups of 32, OpenVINO's own default.
    """
    import openvino

    core = openvino.Core()
    found = core.read_model(str(openvino_file(model, one_qkv, kind)))
    found.reshape({found.input(0): [1, tokens]})
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    if kind.startswith("INT"):
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 32
    compiled = core.compile_model(found, "CPU", settings)
    request, output = compiled.create_infer_request(), compiled.output(0)
    return lambda ids: request.infer([ids[None].astype(np.int64)], share_inputs=True)[output][0]


# --- CTranslate2


def ctranslate2_folder(model: str) -> Path:
    """BERT's encoder in CTranslate2's own specification, filled from our weights; its converter reads only hubs."""
    from ctranslate2.specs import common_spec, transformer_spec

    from flyweight.model.nlu import NLUModel

    def make(path: Path) -> None:
        source = NLUModel.load(model_folder(model))
        encoder, layers = source.encoder, list(source.encoder.layers)
        made_spec = transformer_spec.TransformerEncoderSpec(
            len(layers),
            layers[0].attention.heads,
            pre_norm=False,
            activation=common_spec.Activation.GELU,
            layernorm_embedding=True,
        )
        spec = transformer_spec.TransformerEncoderModelSpec(made_spec)
        made_spec.scale_embeddings = False
        made_spec.embeddings[0].weight = encoder.words.weight.detach().numpy()
        made_spec.position_encodings.encodings = encoder.positions.weight.detach().numpy()
        _fill(made_spec.layernorm_embedding, encoder.norm, "gamma", "beta")
        for to, layer in zip(made_spec.layer, layers, strict=True):
            _fill(to.self_attention.linear[0], layer.attention.qkv)
            _fill(to.self_attention.linear[1], layer.attention.out)
            _fill(to.self_attention.layer_norm, layer.attention.norm, "gamma", "beta")
            _fill(to.ffn.linear_0, layer.ffn.up)
            _fill(to.ffn.linear_1, layer.ffn.down)
            _fill(to.ffn.layer_norm, layer.ffn.norm, "gamma", "beta")
        spec.register_vocabulary([f"t{i}" for i in range(encoder.words.weight.shape[0])])
        spec.config.unk_token = "t0"
        spec.config.layer_norm_epsilon = encoder.config.norm_eps
        spec.validate()
        spec.optimize(quantization="int8")
        path.mkdir(parents=True, exist_ok=True)
        spec.save(str(path))

    return made(model, "ctranslate2", make)


def _fill(to: object, module: object, weight: str = "weight", bias: str = "bias") -> None:
    setattr(to, weight, module.weight.detach().numpy())
    setattr(to, bias, module.bias.detach().numpy())


def open_ctranslate2(model: str, tokens: int, threads: int) -> Call:
    """int8 weights, activations quantized per token; it gives hidden states: mean and head are NumPy's here."""
    import ctranslate2

    from flyweight.model.nlu import NLUModel

    head = NLUModel.load(model_folder(model)).intent_head
    weight, bias = head.weight.detach().numpy().T.copy(), head.bias.detach().numpy()
    encoder = ctranslate2.Encoder(
        str(ctranslate2_folder(model)), device="cpu", compute_type="int8", intra_threads=threads, inter_threads=1
    )

    def call(ids: np.ndarray) -> np.ndarray:
        hidden = np.array(encoder.forward_batch([ids.tolist()]).last_hidden_state, copy=False)  # (1, T, D)
        return hidden[0].mean(axis=0) @ weight + bias

    return call


# --- LiteRT


def litert_file(model: str, tokens: int, recipe: str, n_qkv: int, batch: int = 1) -> Path:
    """One graph has one fixed shape; with a batch of more than 1 it also takes a mask."""
    path = _litert_path(model, tokens, recipe, n_qkv, batch)
    if not path.is_file():
        # A conversion takes longer than its quantizations, so all recipes are made at once.
        recipes = LITERT_RECIPES if batch == 1 else (recipe,)
        make_litert(model, [tokens], recipes, n_qkv, batch)
    return path


def make_litert(model: str, lengths: Iterable[int], recipes: Sequence[str], n_qkv: int, batch: int = 1) -> None:
    """Convert for all lengths that are missing, in one process."""
    lengths = [n for n in lengths if not all(_litert_path(model, n, r, n_qkv, batch).is_file() for r in recipes)]
    if not lengths:
        return
    if not CONVERTER.is_file():
        raise FileNotFoundError(f"no converter at {CONVERTER}; run benchmarks/peers_env.sh")
    folder = CACHE / model / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    script, source = Path(__file__).with_name("peers_litert.py"), Path(__file__).resolve().parents[1] / "src"
    words = [CONVERTER, script, model_folder(model), folder, "--batch", batch, "--qkv", n_qkv]
    words += ["--tokens", *lengths, "--recipes", *recipes]
    variables = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in words], env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"litert-torch: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def _litert_path(model: str, tokens: int, recipe: str, n_qkv: int, batch: int) -> Path:
    shape = f"{tokens}" if batch == 1 else f"{batch}x{tokens}"
    return CACHE / model / "peers" / f"{recipe}-qkv{n_qkv}-{shape}.tflite"


def open_litert(recipe: str, n_qkv: int, model: str, tokens: int, threads: int) -> Call:
    """The interpreter with its default delegate, XNNPACK."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(litert_file(model, tokens, recipe, n_qkv)), num_threads=threads)
    interpreter.allocate_tensors()
    entry, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def call(ids: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(entry, ids[None])
        interpreter.invoke()
        return interpreter.get_tensor(out)[0]

    return call


def _qkv(opener: Callable[..., Call], *settings: object, prefix: str = "") -> dict[str, Open]:
    return {f"{prefix}qkv{n}": partial(opener, n == 1, *settings) for n in (1, 3)}


def _ort(file: Callable[..., Path], *settings: object) -> Open:
    return partial(open_ort, lambda model: file(model, *settings))


PEERS: dict[str, Peer] = {
    "torch-fp32": Peer(32, _qkv(open_torch, None), "ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA"),
    "torch-int8": Peer(
        8,
        _qkv(open_torch, "x86", prefix="x86 ") | _qkv(open_torch, "onednn", prefix="onednn "),
        "ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, FBGEMM_ENABLE_INSTRUCTIONS",
    ),
    "ort-fp32": Peer(32, {f"qkv{n}": _ort(onnx_file, n == 1) for n in (1, 3)}, ""),
    "ort-int8": Peer(
        8,
        {
            f"{'channel' if per_channel else 'matrix'} qkv{n}": _ort(onnx_int8_file, n == 1, per_channel)
            for n in (1, 3)
            for per_channel in (True, False)
        },
        "",
    ),
    "ort-4bit": Peer(4, {f"blocks of {block}": _ort(onnx_nbits_file, 4, block) for block in (32, 128)}, ""),
    "openvino-bf16": Peer(16, _qkv(open_openvino, "float32", "bf16"), "ONEDNN_MAX_CPU_ISA"),
    "openvino-int8": Peer(
        8,
        _qkv(open_openvino, "nncf", "f32", prefix="nncf f32 ")
        | _qkv(open_openvino, "nncf", "bf16", prefix="nncf bf16 ")
        | {"weights, int8 activations": partial(open_openvino, True, "INT8_SYM", "f32")},
        "ONEDNN_MAX_CPU_ISA",
    ),
    "openvino-4bit": Peer(
        4, {"weights, int8 activations": partial(open_openvino, True, "INT4_SYM", "f32")}, "ONEDNN_MAX_CPU_ISA"
    ),
    "ctranslate2-int8": Peer(8, {"int8": open_ctranslate2}, "CT2_FORCE_CPU_ISA, ONEDNN_MAX_CPU_ISA"),
    "litert-int8": Peer(8, {f"qkv{n}": partial(open_litert, "dynamic_wi8_afp32", n) for n in (1, 3)}, ""),
    "litert-4bit": Peer(
        4,
        {f"rows qkv{n}": partial(open_litert, "dynamic_wi4_afp32", n) for n in (1, 3)},
        "",
    ),
    "litert-4bit-32": Peer(4, {"blocks qkv1": partial(open_litert, "dynamic_wi4b32_afp32", 1)}, ""),
    "litert-2bit": Peer(2, {"rows qkv1": partial(open_litert, "dynamic_wi2c_afp32", 1)}, ""),
}
