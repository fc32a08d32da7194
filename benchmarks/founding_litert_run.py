"""LiteRT's side of the founding experiment: converts and asks in the converter's environment, scores here."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import founding_quality
import numpy as np
from peers import CONVERTER

import flyweight as fw
from flyweight.data.messages import Message
from flyweight.tokenizer import Tokenizer

SCRIPT = Path(__file__).with_name("founding_litert.py")
KEPT = 16  # tokens of the graph whose bytes and milliseconds are reported
LENGTHS_OF_LARGE = 3  # a conversion of BERT-base's size takes minutes a length: the most frequent ones
LARGE = 50_000_000  # parameters


def measure(model: fw.NLUModel, data: fw.NLUData) -> dict[str, Any]:
    """Rows by form, like founding_quality, on the test messages; of a large model on those of its commonest lengths."""
    asked = list(data.test)
    lengths = [len(e.ids) for e in model.tokenizer.encode_batch([m.text for m in asked])]
    if model.n_parameters() > LARGE:
        common = {n for n, _ in Counter(lengths).most_common(LENGTHS_OF_LARGE)}
        asked = [m for m, n in zip(asked, lengths, strict=True) if n in common]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        model.save(out / "model")
        convert(out / "model", token_ids(model.tokenizer, asked), token_ids(model.tokenizer, data.train), out)
        parent = founding_quality.answers_of(model, out / "float.fly", asked)
        rows = {}
        for form, logits in np.load(out / "logits.npz").items():
            found = founding_quality.answers_from_logits(model, asked, logits)
            rows[form] = founding_quality.score(found, parent, asked)
        sizes = json.loads((out / "bytes.json").read_text(encoding="utf-8"))
    return {"messages": len(asked), "rows": {form: row | {"file_bytes": sizes[form]} for form, row in rows.items()}}


def convert(model: Path, asked: Sequence[np.ndarray], calibration: Sequence[np.ndarray], out: Path) -> None:
    """Run the converter on a model folder; `out` then holds logits.npz, bytes.json and the graphs of KEPT tokens."""
    if not CONVERTER.is_file():
        raise FileNotFoundError(f"no converter at {CONVERTER}; run benchmarks/peers_env.sh")
    np.savez(out / "messages.npz", **packed("", asked), **packed("calibration_", calibration))
    words = [CONVERTER, SCRIPT, model, out / "messages.npz", out, "--keep", KEPT]
    source = Path(__file__).resolve().parents[1] / "src"
    variables = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(word) for word in words], env=variables, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"LiteRT's converter: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def token_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[np.ndarray]:
    """(T,) int32 of each message."""
    return [e.ids.astype(np.int32) for e in tokenizer.encode_batch([m.text for m in messages])]


def packed(prefix: str, rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Token ids one after another, and the lengths."""
    return {f"{prefix}ids": np.concatenate(rows), f"{prefix}lengths": np.array([len(row) for row in rows], np.int64)}
