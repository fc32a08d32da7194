"""Do we compute what `transformers` computes? The largest |difference| in float32, base by base.

    python benchmarks/parity.py [--quick] [--bases minilm FOLDER ...]

Random: every family at every shape of tests/test_model_parity.py, weights, biases and norms drawn so that each part
matters; *ForSequenceClassification and *ForTokenClassification are saved by transformers and imported.
Real: MiniLM and, where its folder is in the cache, mpnet-base, on the embedded test messages, with random heads.

    hidden     last hidden states of all tokens, PyTorch
    intents    logits (C,) of the sequence head: PyTorch | the .fly by the NumPy reference | by the native engine
    tags       logits (n_tags,) of each word's first token, likewise
    size       root mean square of transformers' numbers, beside which a difference is small or not

The .fly files are exported without techniques: float32 weights, no int8 activations.
Writes benchmarks/results/parity.json (not with --quick: one shape a family, MiniLM on 20 messages).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import flyweight as fw
from flyweight.answers import Labels
from flyweight.artifact import read
from flyweight.measure.machine import machine
from flyweight.model.checkpoints import encoder_from, load_encoder, resolve_base
from flyweight.model.nlu import NLUModel, pad
from flyweight.runtime import native
from flyweight.runtime.native import Native
from flyweight.runtime.reference import Reference
from flyweight.tokenizer import Encoded, Tokenizer
from flyweight.training.teacher import golden_messages

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))  # families, shapes and saved folders stand there, once
from test_model_finetuned import INTENTS, TAGS, TEXTS, finetuned, their_logits  # noqa: E402
from test_model_parity import FAMILY_CASES, PARITY, SHAPES, largest_difference, padded_batch, tiny  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "parity.json"
MPNET = Path.home() / ".cache" / "flyweight" / "bases" / "all-mpnet-base-v2"
HEADS = {"intents": ("ForSequenceClassification", INTENTS), "tags": ("ForTokenClassification", TAGS)}
REAL_LABELS = Labels(tuple(f"intent {i}" for i in range(20)), tuple(f"entity {i}" for i in range(5)))
Logits = Sequence[tuple[np.ndarray, np.ndarray | None]]


def runs(model: NLUModel, encoded: list[Encoded], folder: Path) -> dict[str, Logits]:
    """Logits of a model by all that can compute them; the file is exported through its gate."""
    artifact = read(fw.save(model, folder / "m.fly"))
    found: dict[str, Logits] = {"pytorch": model.logits(encoded), "numpy": Reference(artifact).logits(encoded)}
    if native.module() is not None:
        found["engine"] = Native(artifact).logits(encoded)
    return found


def gap(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """max |found - wanted|; NaN, which is no small difference, where one of them holds NaN."""
    return float(np.max([np.abs(a - b).max(initial=0) for a, b in zip(found, wanted, strict=True)]))


def rms(arrays: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(np.mean(np.concatenate([a.ravel() for a in arrays]) ** 2)))


def random_row(
    case: tuple[str, int, dict[str, Any]], shapes: Sequence[tuple[int, int, int, int, str]]
) -> dict[str, Any]:
    """One family with its settings: the largest differences over the shapes."""
    family, pad_id, settings = case
    gaps: dict[str, list[float]] = {"hidden": []}
    sizes: dict[str, list[float]] = {}
    for shape in shapes:
        base = tiny(family, shape, **settings)
        ours = encoder_from(base.config.to_dict(), base.state_dict())
        gaps["hidden"].append(largest_difference(base, ours, *padded_batch(pad_id)))
        for what, (head, names) in HEADS.items():
            with tempfile.TemporaryDirectory() as place:
                theirs = finetuned(Path(place), head, names, family, shape, **settings)
                model = fw.import_teacher(place)
                encoded = model.tokenizer.encode_batch(TEXTS)
                wanted = their_logits(theirs, model)
                if what == "tags":
                    columns = [names.index(tag) for tag in model.labels.tags]
                    wanted = [rows[e.first][:, columns] for rows, e in zip(wanted, encoded, strict=True)]
                sizes.setdefault(what, []).append(rms(wanted))
                for run, logits in runs(model, encoded, Path(place)).items():
                    found = [t if what == "tags" else i for i, t in logits]
                    gaps.setdefault(f"{what} {run}", []).append(gap([a for a in found if a is not None], wanted))
    name = family + "".join(f", {k} {v}" for k, v in settings.items())
    return {
        "base": name,
        "random": True,
        "cases": len(shapes),
        "size": {k: float(np.mean(v)) for k, v in sizes.items()},
        "largest_difference": {k: max(v) for k, v in gaps.items()},
    }


@torch.no_grad()
def real_row(base: str, n_messages: int) -> dict[str, Any]:
    """A real checkpoint on the embedded test messages, with random heads on its hidden states."""
    folder = resolve_base(base)
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    encoder = load_encoder(folder)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", 128)
    data = fw.load_data("assistant")
    texts = [m.text for m in data.test][:n_messages]
    encoded = tokenizer.encode_batch(texts)
    model = NLUModel(encoder.config, tokenizer, REAL_LABELS)
    model.encoder.load_state_dict(encoder.state_dict())
    model.card.golden = golden_messages(data.train)
    assert model.tag_head is not None
    generator = torch.Generator().manual_seed(0)
    for head in (model.intent_head, model.tag_head):
        for p in head.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * encoder.config.hidden**-0.5)
    hidden = []
    for e in encoded:
        ids, mask = pad([e.ids])
        hidden.append(theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state[0])
    intents = [model.intent_head(h.mean(0, keepdim=True))[0].numpy() for h in hidden]
    tags = [model.tag_head(h[e.first]).numpy() for h, e in zip(hidden, encoded, strict=True)]
    ours = [model.eval().encoder(*pad([e.ids]))[0].numpy() for e in encoded]
    gaps = {"hidden": gap(ours, [h.numpy() for h in hidden])}
    with tempfile.TemporaryDirectory() as place:
        for run, logits in runs(model, encoded, Path(place)).items():
            gaps[f"intents {run}"] = gap([i for i, _ in logits], intents)
            gaps[f"tags {run}"] = gap([t for _, t in logits if t is not None], tags)
    return {
        "base": folder.name if base != "minilm" else "all-MiniLM-L6-v2",
        "random": False,
        "cases": len(texts),
        "size": {"hidden": rms([h.numpy() for h in hidden]), "intents": rms(intents), "tags": rms(tags)},
        "largest_difference": gaps,
    }


COLUMNS = ["hidden", *(f"{what} {run}" for what in HEADS for run in ("pytorch", "numpy", "engine"))]


def line(row: dict[str, Any]) -> str:
    found, size = row["largest_difference"], row["size"]
    cells = [f"{found[c]:.1e}" if c in found else "-" for c in COLUMNS]
    sizes = "/".join(f"{size[what]:.2f}" for what in HEADS)
    return f"{row['base']:38} {row['cases']:5} " + " ".join(f"{cell:>15}" for cell in cells) + f"  {sizes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="*", default=["minilm", *([str(MPNET)] if MPNET.is_dir() else [])])
    parser.add_argument("--messages", type=int, default=200, help="of the embedded test part, for real bases")
    parser.add_argument("--quick", action="store_true")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.bases, chosen.messages = ["minilm"], 20
    shapes = SHAPES[1:2] if chosen.quick else SHAPES
    transformers.utils.logging.disable_progress_bar()
    print(f"{'base':38} {'cases':>5} " + " ".join(f"{c:>15}" for c in COLUMNS) + "  size of intents/tags")
    rows = []
    for case in FAMILY_CASES:
        rows.append(random_row(case, shapes))
        print(line(rows[-1]), flush=True)
    for base in chosen.bases:
        rows.append(real_row(base, chosen.messages))
        print(line(rows[-1]), flush=True)
    largest = max(max(row["largest_difference"].values()) for row in rows)
    within = all(difference <= PARITY for row in rows for difference in row["largest_difference"].values())
    print(f"largest: {largest:.2e}; bound {PARITY:g}: {'met' if within else 'MISSED'}")
    if not chosen.quick:
        result = {"machine": machine(), "threads": torch.get_num_threads(), "bound": PARITY, "rows": rows}
        result["machine"]["versions"] |= {"transformers": transformers.__version__}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(not within)


if __name__ == "__main__":
    main()
