"""How the model families of Hugging Face name their tensors, their config entries and their heads: one literal table.

    bert, ernie                     absolute positions; ernie adds a task type where use_task_id is true
    roberta, xlm-roberta, camembert the first pad_token_id + 1 position rows are reserved
    distilbert                      no token types, names of its own; LayerNorm's epsilon is always 1e-12
    electra                         embeddings may be narrower than the layers: a projection follows them
    mpnet                           relative position bias of 32 buckets; two position rows are reserved

Sizes of the layers must stand in config.json; any other entry that it lacks has the default that `transformers` gives.

Sources: Devlin et al. 2019, arXiv:1810.04805; Sun et al. 2019, arXiv:1907.12412 (ERNIE 2.0); Liu et al. 2019,
arXiv:1907.11692; Conneau et al. 2020, arXiv:1911.02116 (XLM-R); Sanh et al. 2019, arXiv:1910.01108; Clark et al. 2020,
arXiv:2003.10555; Song et al. 2020, arXiv:2004.09297.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flyweight.model.nlu import Pooling

_LAYER = "encoder.layer.{i}."


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """The head of a family's *ForSequenceClassification: `pooling`, then the linear layers `pooler` and `out`.

    `pooler` may lie within the encoder, behind its prefix; the names of heads have none.
    """

    pooling: Pooling
    pooler: str
    out: str


@dataclass(frozen=True, kw_only=True)
class ConstantTable:
    """A table of which row 0 is added to every token: its tensor, and the entries of config.json that tell of it.

    rows: the entry with the number of rows, `default` where it is absent; without rows the tensor is not needed.
    flag: the entry that switches the table on; None: it is always on.
    """

    tensor: str
    rows: str
    default: int
    flag: str | None = None


_TOKEN_TYPES = ConstantTable(tensor="embeddings.token_type_embeddings.weight", rows="type_vocab_size", default=2)
_TASK_TYPES = ConstantTable(
    tensor="embeddings.task_type_embeddings.weight", rows="task_type_vocab_size", default=3, flag="use_task_id"
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one model family names things. Tensor names come without `prefix`; layer names hold `{i}`.

    config: BERT's name of an entry -> the family's names for it, of which the first that is there counts; no name
    where the family has a constant instead. Entries that are not listed have BERT's name.
    pad_offset: positions count from pad_token_id + 1. projection: after the norm of narrower embeddings, whose width
    is embedding_size; None where embeddings are as wide as the layers.
    """

    prefix: str
    classifier: Classifier
    words: str = "embeddings.word_embeddings.weight"
    positions: str = "embeddings.position_embeddings.weight"
    constants: tuple[ConstantTable, ...] = (_TOKEN_TYPES,)
    norm: str = "embeddings.LayerNorm"
    projection: str | None = None
    query: str = _LAYER + "attention.self.query"
    key: str = _LAYER + "attention.self.key"
    value: str = _LAYER + "attention.self.value"
    out: str = _LAYER + "attention.output.dense"
    attention_norm: str = _LAYER + "attention.output.LayerNorm"
    up: str = _LAYER + "intermediate.dense"
    down: str = _LAYER + "output.dense"
    ffn_norm: str = _LAYER + "output.LayerNorm"
    relative_bias: str | None = None
    pad_offset: bool = False
    config: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_DENSE_OUT = Classifier(pooling="cls+tanh", pooler="classifier.dense", out="classifier.out_proj")
_ROBERTA = Family(prefix="roberta.", pad_offset=True, classifier=_DENSE_OUT)
FAMILIES: dict[str, Family] = {
    "bert": Family(
        prefix="bert.", classifier=Classifier(pooling="cls+tanh", pooler="bert.pooler.dense", out="classifier")
    ),
    "ernie": Family(
        prefix="ernie.",
        classifier=Classifier(pooling="cls+tanh", pooler="ernie.pooler.dense", out="classifier"),
        constants=(_TOKEN_TYPES, _TASK_TYPES),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Family(
        prefix="distilbert.",
        classifier=Classifier(pooling="cls+relu", pooler="pre_classifier", out="classifier"),
        constants=(),
        query="transformer.layer.{i}.attention.q_lin",
        key="transformer.layer.{i}.attention.k_lin",
        value="transformer.layer.{i}.attention.v_lin",
        out="transformer.layer.{i}.attention.out_lin",
        attention_norm="transformer.layer.{i}.sa_layer_norm",
        up="transformer.layer.{i}.ffn.lin1",
        down="transformer.layer.{i}.ffn.lin2",
        ffn_norm="transformer.layer.{i}.output_layer_norm",
        config={
            "hidden_size": ("hidden_size", "dim"),
            "num_attention_heads": ("num_attention_heads", "n_heads"),
            "num_hidden_layers": ("num_hidden_layers", "n_layers"),
            "intermediate_size": ("hidden_dim",),
            "hidden_act": ("activation",),
            "layer_norm_eps": (),
        },
    ),
    "electra": Family(
        prefix="electra.",
        classifier=Classifier(pooling="cls+gelu", pooler="classifier.dense", out="classifier.out_proj"),
        projection="embeddings_project",
    ),
    "mpnet": Family(
        prefix="mpnet.",
        classifier=_DENSE_OUT,
        constants=(),
        query=_LAYER + "attention.attn.q",
        key=_LAYER + "attention.attn.k",
        value=_LAYER + "attention.attn.v",
        out=_LAYER + "attention.attn.o",
        attention_norm=_LAYER + "attention.LayerNorm",
        relative_bias="encoder.relative_attention_bias.weight",
        pad_offset=True,
        config={"pad_token_id": ()},
    ),
}
TAG_HEAD = "classifier"  # of every family's *ForTokenClassification
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
