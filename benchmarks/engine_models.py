"""The models of the engine benchmarks and their .fly files, made once and kept in FLYWEIGHT_CACHE/bench.

    bert-base    12 layers x 768, random weights (std 0.02): time does not depend on the values
    minilm       6 layers x 384, the weights of all-MiniLM-L6-v2
    2x128        2 layers x 128, random weights; the tokenizer is learned from the embedded data set

All have 77 intents under a random linear head on the mean of the hidden states, and no entities.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("FLYWEIGHT_CACHE", Path.home() / ".cache" / "flyweight")) / "bench"
MODELS = ("bert-base", "minilm", "2x128")
# Form -> bits of an encoder weight, and the techniques that make it (k-means centres in the encoder).
FORMS = {"int8": 8, "4bit": 4, "2bit": 2, "1bit": 1, "float32": 32}
N_INTENTS = 77
MAX_TOKENS = 128
GOLDEN = ("book a table for two", "play some music", "wake me up at seven", "what is the weather like in Berlin?")


def model_folder(name: str) -> Path:
    """The folder of a float32 model, saved by `NLUModel.save`; built when it is not there."""
    folder = CACHE / name / "model"
    if not (folder / "config.json").is_file():
        _build(name).save(folder)
    return folder


def fly_file(name: str, form: str) -> Path:
    """The .fly file of a model in a form; built when missing, and again when this Flyweight cannot read it."""
    import flyweight as fw

    path = CACHE / name / f"{form}.fly"
    try:
        fw.load(path)
    except fw.FlyweightError:
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_fly(name, form, path)
    return path


def _write_fly(name: str, form: str, path: Path) -> None:
    import flyweight as fw
    from flyweight.techniques.room import Run

    model = fw.NLUModel.load(model_folder(name))
    run = Run(fw.NLUData(()), model, device="cpu", progress=False)
    if form == "int8":
        model = fw.Int8().apply(model, run)
    elif form != "float32":
        model = fw.Codebook(encoder=2 ** FORMS[form]).apply(model, run)
    fw.save(model, path)


def encoder_weights(name: str) -> int:
    """Weights that one message reads whole: attention, FFN and head matrices; of embeddings it reads single rows."""
    import json

    config = json.loads((model_folder(name) / "config.json").read_text(encoding="utf-8"))["encoder"]
    width, size = config["hidden"], config["head_size"]
    layers = sum(4 * width * s["heads"] * size + 2 * width * s["ffn"] for s in config["layers"])
    return layers + N_INTENTS * width


def message_ids(name: str, n_tokens: int, seed: int = 0) -> np.ndarray:
    """Random word pieces (T,) int32 between the tokenizer's [CLS] and [SEP]."""
    from flyweight.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(model_folder(name) / "tokenizer.json", MAX_TOKENS)
    ids = tokenizer.encode("a").ids
    inner = np.random.default_rng(seed).integers(tokenizer.vocab_size // 10, tokenizer.vocab_size, n_tokens - 2)
    return np.concatenate([ids[:1], inner, ids[-1:]]).astype(np.int32)


def _build(name: str):
    import torch

    from flyweight.answers import Labels
    from flyweight.model.nlu import NLUModel

    builders: dict[str, Callable[[], tuple]] = {"bert-base": _bert_base, "minilm": _minilm, "2x128": _small}
    torch.manual_seed(0)
    encoder, tokenizer = builders[name]()
    labels = Labels(tuple(f"intent {i}" for i in range(N_INTENTS)))
    model = NLUModel(encoder.config, tokenizer, labels)
    model.encoder.load_state_dict(encoder.state_dict())
    model.card.golden = list(GOLDEN)
    return model.eval()


def _bert_base() -> tuple:
    from flyweight.model.checkpoints import resolve_base
    from flyweight.model.encoder import Encoder, EncoderConfig, LayerShape
    from flyweight.tokenizer import Tokenizer

    layers = (LayerShape(heads=12, ffn=3072),) * 12
    config = EncoderConfig(vocab_size=30522, hidden=768, head_size=64, layers=layers, max_positions=512)
    return Encoder(config), Tokenizer.from_file(resolve_base("minilm") / "tokenizer.json", MAX_TOKENS)


def _minilm() -> tuple:
    from flyweight.model.checkpoints import load_encoder, resolve_base
    from flyweight.tokenizer import Tokenizer

    folder = resolve_base("minilm")
    return load_encoder(folder), Tokenizer.from_file(folder / "tokenizer.json", MAX_TOKENS)


def _small() -> tuple:
    import flyweight as fw
    from flyweight.model.encoder import Encoder
    from flyweight.model.small import small_config, train_tokenizer
    from flyweight.tokenizer import Tokenizer

    texts = [m.text for m in fw.load_data("assistant").train]
    tokenizer = Tokenizer(train_tokenizer(texts), MAX_TOKENS)
    return Encoder(small_config(tokenizer.vocab_size)), tokenizer
