"""A model folder as its users would run it elsewhere: PyTorch fp32, ONNX Runtime int8, LiteRT int8, OpenVINO int8.

One message in, intent and entities out, one thread; the `tokenizers` package tokenizes. Q, K and V are three matrices,
the fastest form at BERT-base's size in benchmarks/results/engine.json or within a few percent of it. ONNX Runtime gets
a scale a row: as fast as one a matrix here, and it loses much less.

A LiteRT graph has one fixed length, and OpenVINO is faster with one (see peers.py): for both there is a graph for every
eighth length, 8, 16, 24 ..., and a message runs in the shortest that holds it, padded and masked. PyTorch and ONNX
Runtime get the bare message. Files are made once, in FLYWEIGHT_CACHE/headline; benchmarks/peers_env.sh makes the
environments that hold the peers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import peers
from teachers import CACHE

import flyweight as fw
from flyweight.answers import Answer, softmax
from flyweight.tokenizer import Encoded
from flyweight.tokenizer.package import plain_words

STEP = 8  # between the lengths of graphs of a fixed length
SITE = CACHE / "peers-venv"
LITERT_RECIPE = "dynamic_wi8_afp32"
N_CALIBRATION = 300  # messages that OpenVINO's static int8 learns its ranges from; NNCF's default
Call = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]  # ids (T,) -> intent (C,), tags of tokens (T, n)


class PeerModel:
    """A model folder in another runtime: `answers` like every model, `parse` is what is timed."""

    def __init__(self, folder: Path, call: Call):
        from tokenizers import Tokenizer

        model = fw.NLUModel.load(folder)
        self.labels, self.call = model.labels, call
        self.tokenizer = Tokenizer.from_str(model.tokenizer.source)
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(model.tokenizer.max_tokens)

    def parse(self, text: str) -> tuple[str, float, list[str]]:
        """Intent, confidence and the likeliest tag of each word: the least that a user must do with the logits."""
        encoding = self.tokenizer.encode(text)
        intent, tags = self.call(np.asarray(encoding.ids))
        p = softmax(intent)
        best = int(p.argmax())
        if tags is None:
            return self.labels.intents[best], float(p[best]), []
        first, _ = plain_words(encoding)
        names = self.labels.tags
        return self.labels.intents[best], float(p[best]), [names[i] for i in tags[first].argmax(axis=1)]

    def answers(self, texts: Sequence[str]) -> list[Answer]:
        """One answer a message, decoded as ours are: legal tags only."""
        found = []
        for text in texts:
            encoding = self.tokenizer.encode(text)
            ids = np.asarray(encoding.ids)
            intent, tags = self.call(ids)
            first, words = plain_words(encoding)
            encoded = Encoded(ids, np.asarray(first, dtype=np.int64), words)
            found.append(self.labels.answer(text, encoded, intent, None if tags is None else tags[first]))
        return found


def lengths_up_to(longest: int) -> list[int]:
    """Every eighth length until the longest message has room: 17 tokens -> 8, 16, 24."""
    return list(range(STEP, longest + STEP, STEP))


def padded(ids: np.ndarray, lengths: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """ids (T,) -> ids and mask (1, n) int32 of the shortest length n >= T. Errors: ValueError where there is none."""
    n = next((n for n in lengths if n >= len(ids)), None)
    if n is None:
        raise ValueError(f"a message of {len(ids)} tokens; the longest graph holds {max(lengths)}")
    row, mask = np.zeros((1, n), np.int32), np.zeros((1, n), np.int32)
    row[0, : len(ids)], mask[0, : len(ids)] = ids, 1
    return row, mask


def outputs(arrays: Sequence[np.ndarray], n_tokens: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(1, C) and, where there is an entity head, (1, T, n_tags), in any order -> intent, tags of the real tokens."""
    by_rank = {a.ndim: a for a in arrays}
    tags = by_rank.get(3)
    return by_rank[2][0], None if tags is None else tags[0, :n_tokens]


def open_torch(folder: Path, texts: Sequence[str], lengths: Sequence[int]) -> tuple[Call, Path]:
    """Eager PyTorch, float32."""
    import torch
    from peers_bert import plain_bert

    module = plain_bert(folder, one_qkv=False, tags=True)

    def call(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        with torch.inference_mode():
            found = module(torch.from_numpy(ids)[None])
        found = found if isinstance(found, tuple) else (found,)
        return outputs([t.numpy() for t in found], len(ids))

    return call, folder / "model.safetensors"


def open_onnx(folder: Path, texts: Sequence[str], lengths: Sequence[int]) -> tuple[Call, Path]:
    """ONNX Runtime's own dynamic int8, any length."""
    path = onnx_file(folder, "int8-channel")
    session: Any = peers.ort_session(path, 1)

    def call(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return outputs(session.run(None, {"ids": ids[None].astype(np.int64, copy=False)}), len(ids))

    return call, path


def open_litert(folder: Path, texts: Sequence[str], lengths: Sequence[int]) -> tuple[Call, Path]:
    """The interpreter with its default delegate, XNNPACK: dynamic int8, a graph a length."""
    from ai_edge_litert.interpreter import Interpreter

    graphs = {}
    for n, path in litert_files(folder, lengths).items():
        graphs[n] = Interpreter(str(path), num_threads=1)
        graphs[n].allocate_tensors()

    def call(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        row, mask = padded(ids, lengths)
        graph = graphs[row.shape[1]]
        entries = sorted(graph.get_input_details(), key=lambda entry: entry["name"])  # args_0: ids, args_1: mask
        graph.set_tensor(entries[0]["index"], row)
        graph.set_tensor(entries[1]["index"], mask)
        graph.invoke()
        return outputs([graph.get_tensor(out["index"]) for out in graph.get_output_details()], len(ids))

    return call, litert_files(folder, lengths)[max(lengths)]


def open_openvino(folder: Path, texts: Sequence[str], lengths: Sequence[int]) -> tuple[Call, Path]:
    """NNCF's static int8 with the transformer preset, float32 elsewhere, latency hint; a graph a length."""
    import openvino

    core, path = openvino.Core(), openvino_file(folder, texts)
    requests = {}
    for n in lengths:
        found = core.read_model(str(path))
        found.reshape({entry: [1, n] for entry in found.inputs})
        settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1}
        compiled = core.compile_model(found, "CPU", settings | {"INFERENCE_PRECISION_HINT": "f32"})
        requests[n] = compiled.create_infer_request()

    def call(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        row, mask = padded(ids, lengths)
        found = requests[row.shape[1]].infer([row.astype(np.int64), mask.astype(np.int64)], share_inputs=True)
        return outputs(list(found.values()), len(ids))

    return call, path.with_suffix(".bin")


# Name -> opener of a model folder; given training messages to calibrate on, and the lengths of graphs of a fixed one.
RUNTIMES: dict[str, Callable[[Path, Sequence[str], Sequence[int]], tuple[Call, Path]]] = {
    "PyTorch fp32": open_torch,
    "ONNX Runtime int8": open_onnx,
    "LiteRT int8": open_litert,
    "OpenVINO int8": open_openvino,
}
INT8 = tuple(name for name in RUNTIMES if name.endswith("int8"))


def opened(runtime: str, folder: Path, texts: Sequence[str], longest: int) -> tuple[PeerModel, Path]:
    """A model folder in a runtime, and the file whose bytes are those of one graph. Every graph has been run once."""
    use_peers()
    lengths = lengths_up_to(longest)
    call, path = RUNTIMES[runtime](folder, texts, lengths)
    for n in lengths:
        call(np.ones(n, np.int64))
    return PeerModel(folder, call), path


def use_peers() -> None:
    """Let this process import what only the peers' environment holds; ours goes first where both have a package."""
    site = next(iter((SITE / "lib").glob("python3*/site-packages")), None)
    if site is None:
        sys.exit(f"no peers at {SITE}; run benchmarks/peers_env.sh")
    if str(site) not in sys.path:
        sys.path.append(str(site))


def versions() -> dict[str, str]:
    """Of the peers."""
    from flyweight.measure.machine import versions

    return versions(("torch", "onnxruntime", "ai-edge-litert", "openvino", "nncf", "tokenizers"))


def place(folder: Path) -> Path:
    """Where the files made of a model folder lie; its name must tell models apart, as those of the caches do."""
    name = folder.name if folder.name != "model" else folder.parent.name
    found = CACHE / "headline" / name
    found.mkdir(parents=True, exist_ok=True)
    return found


def onnx_file(folder: Path, kind: str) -> Path:
    """kind: int8-channel; or float32-masked, which takes a mask, for OpenVINO's converter."""
    from peers_onnx import export_onnx, quantize_onnx

    path = place(folder) / f"{kind}.onnx"
    if not path.is_file():
        part, floats = path.with_name(f"part-{path.name}"), path.with_name("part-float32.onnx")
        if kind == "int8-channel":
            export_onnx(folder, floats, one_qkv=False, tags=True)
            quantize_onnx(floats, part, per_channel=True)
            floats.unlink()
        else:
            export_onnx(folder, part, one_qkv=False, masked=True, tags=True)
        part.replace(path)
    return path


def litert_files(folder: Path, lengths: Sequence[int]) -> dict[int, Path]:
    """A graph for each length; those that are missing are converted in one process of the converter's environment."""
    out = place(folder)
    files = {n: out / f"{LITERT_RECIPE}-qkv3-{n}.tflite" for n in lengths}
    missing = [n for n, path in files.items() if not path.is_file()]
    if missing:
        if not peers.CONVERTER.is_file():
            sys.exit(f"no converter at {peers.CONVERTER}; run benchmarks/peers_env.sh")
        script, source = Path(__file__).with_name("peers_litert.py"), Path(__file__).resolve().parents[1] / "src"
        words = [peers.CONVERTER, script, folder, out, "--qkv", 3, "--whole", "--tokens", *missing]
        variables = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        words += ["--recipes", LITERT_RECIPE]
        done = subprocess.run([str(word) for word in words], env=variables, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"LiteRT's converter: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return files


def openvino_file(folder: Path, texts: Sequence[str]) -> Path:
    """NNCF's int8, its ranges learnt from training messages, each padded to the next eighth length."""
    import nncf
    import openvino

    path = place(folder) / "openvino-int8.xml"
    if not path.is_file():
        encoded = fw.NLUModel.load(folder).tokenizer.encode_batch(list(texts[:N_CALIBRATION]))
        rows: list[Any] = []
        for e in encoded:
            row, mask = padded(e.ids, lengths_up_to(len(e.ids)))
            rows.append((row.astype(np.int64), mask.astype(np.int64)))
        source = onnx_file(folder, "float32-masked")
        with redirect_stdout(sys.stderr):  # its progress bars
            made = nncf.quantize(
                openvino.Core().read_model(str(source)),
                nncf.Dataset(rows),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(rows),
            )
        part = path.with_name(f"part-{path.name}")
        openvino.save_model(made, str(part), compress_to_fp16=False)
        part.with_suffix(".bin").replace(path.with_suffix(".bin"))
        part.replace(path)
        source.unlink()
    return path
