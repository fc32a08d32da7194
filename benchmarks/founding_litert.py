"""Convert a classifier to LiteRT's four forms and let them answer: runs in the converter's environment (see peers.py).

    python benchmarks/founding_litert.py FOLDER MESSAGES.npz OUT [--keep 16]

MESSAGES.npz: ids and lengths of the messages to answer, calibration_ids and calibration_lengths of training messages,
each message's ids after another's. A graph has one length, so there is one a length that occurs, without padding: a
padded graph's mask would spoil the ranges of the full integer form, which calibration messages give.
Writes OUT/logits.npz, OUT/bytes.json and, of the length to be kept, OUT/FORM.tflite.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
from peers_bert import plain_bert

FORMS = {
    "fp32": None,
    "weights8": "weight_only_wi8_afp32",
    "dynamic8": "dynamic_wi8_afp32",
    "integer8": "static_wi8_ai8",
}
N_CALIBRATION = 32  # messages a length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("messages", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--keep", type=int, default=16, help="the length whose files stay")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    stored = np.load(chosen.messages)
    messages = np.split(stored["ids"], np.cumsum(stored["lengths"])[:-1])
    calibration = np.split(stored["calibration_ids"], np.cumsum(stored["calibration_lengths"])[:-1])
    with tempfile.TemporaryDirectory(dir=chosen.out) as folder:
        floats = convert(chosen.folder, sorted({len(m) for m in messages} | {chosen.keep}), Path(folder))
        logits, sizes = answer(floats, calibration, messages, chosen)
    np.savez(chosen.out / "logits.npz", **logits)
    (chosen.out / "bytes.json").write_text(json.dumps(sizes), encoding="utf-8")


def convert(model: Path, lengths: list[int], folder: Path) -> dict[int, Path]:
    """A float32 graph for each length."""
    module, found = plain_bert(model), {}
    for n in lengths:
        found[n] = folder / f"{n}.tflite"
        litert_torch.convert(module, (torch.ones((1, n), dtype=torch.int32),)).export(str(found[n]))
    return found


def calibrate(n: int, path: Path, messages: list[np.ndarray]) -> dict[str, Any]:
    """Ranges of all activations of one graph: over training messages of its length, then over cuts of others joined.

    Graphs of other lengths cannot lend theirs: they give other tensors the same names.
    """
    chosen = [m for m in messages if len(m) == n][:N_CALIBRATION]
    first, last = messages[0][:1], messages[0][-1:]
    inner = n - 2
    joined = np.resize(np.concatenate([m[1:-1] for m in messages]), N_CALIBRATION * inner)
    for i in range(len(chosen), N_CALIBRATION):
        chosen.append(np.concatenate([first, joined[i * inner : (i + 1) * inner], last]))
    [(signature, names)] = Interpreter(str(path)).get_signature_list().items()
    data = {signature: [{names["inputs"][0]: m[None]} for m in chosen]}
    return quantizer.Quantizer(str(path), recipe.static_wi8_ai8()).calibrate(data, num_threads=1)


def answer(
    floats: dict[int, Path], calibration: list[np.ndarray], messages: list[np.ndarray], chosen: argparse.Namespace
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Logits (N, C) of every form, and the bytes of its graph of the length that is kept."""
    logits: dict[str, np.ndarray] = {}
    sizes: dict[str, int] = {}
    for form, name in FORMS.items():
        rows: list[np.ndarray | None] = [None] * len(messages)
        for n, path in floats.items():
            made = path
            if name is not None:
                made = path.with_name(f"{form}.tflite")
                maker = quantizer.Quantizer(str(path), getattr(recipe, name)())
                ranges = calibrate(n, path, calibration) if maker.need_calibration else None
                done = maker.quantize(ranges, enable_progress_report=False)
                done.export_model(str(made), overwrite=True)
            if n == chosen.keep:
                sizes[form] = made.stat().st_size
                (chosen.out / f"{form}.tflite").write_bytes(made.read_bytes())
            call = opened(made)
            for i, ids in enumerate(messages):
                if len(ids) == n:
                    rows[i] = call(ids)
        logits[form] = np.stack(rows)
    return logits, sizes


def opened(path: Path) -> Any:
    """ids (T,) int32 -> logits (C,) float32, by the interpreter with its default delegate, XNNPACK."""
    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    entry, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def call(ids: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(entry["index"], ids[None])
        interpreter.invoke()
        found = interpreter.get_tensor(out["index"])[0].copy()
        scale, zero = out["quantization"]
        return found if found.dtype == np.float32 else ((found.astype(np.float32) - zero) * scale)

    return call


if __name__ == "__main__":
    main()
