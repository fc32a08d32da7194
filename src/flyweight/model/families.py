"""How the model families of Hugging Face name their tensors, their config entries and their heads: one literal table.

    bert, ernie                     absolute positions; ernie adds a task type
    roberta, xlm-roberta, camembert the first pad_token_id + 1 position rows are reserved
    distilbert                      no token types, names of its own
    electra                         embeddings may be narrower than the layers: a projection follows them
    mpnet                           relative position bias; two position rows are reserved

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
class Family:
    """How one model family names things. Tensor names come without `prefix`; layer names hold `{i}`.

    constant_rows: tables of which row 0 is added to every token (token types, task types), where they are there.
    config: names of the family's config.json that differ from BERT's, to BERT's.
    pad_offset: positions count from pad_token_id + 1. projection: after the norm of narrower embeddings.
    """

    prefix: str
    classifier: Classifier
    words: str = "embeddings.word_embeddings.weight"
    positions: str = "embeddings.position_embeddings.weight"
    constant_rows: tuple[str, ...] = ("embeddings.token_type_embeddings.weight",)
    norm: str = "embeddings.LayerNorm"
    projection: str = "embeddings_project"
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
    config: Mapping[str, str] = field(default_factory=dict)


_DENSE_OUT = Classifier(pooling="cls+tanh", pooler="classifier.dense", out="classifier.out_proj")
_ROBERTA = Family(prefix="roberta.", pad_offset=True, classifier=_DENSE_OUT)
FAMILIES: dict[str, Family] = {
    "bert": Family(
        prefix="bert.", classifier=Classifier(pooling="cls+tanh", pooler="bert.pooler.dense", out="classifier")
    ),
    "ernie": Family(
        prefix="ernie.",
        classifier=Classifier(pooling="cls+tanh", pooler="ernie.pooler.dense", out="classifier"),
        constant_rows=("embeddings.token_type_embeddings.weight", "embeddings.task_type_embeddings.weight"),
    ),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "distilbert": Family(
        prefix="distilbert.",
        classifier=Classifier(pooling="cls+relu", pooler="pre_classifier", out="classifier"),
        constant_rows=(),
        query="transformer.layer.{i}.attention.q_lin",
        key="transformer.layer.{i}.attention.k_lin",
        value="transformer.layer.{i}.attention.v_lin",
        out="transformer.layer.{i}.attention.out_lin",
        attention_norm="transformer.layer.{i}.sa_layer_norm",
        up="transformer.layer.{i}.ffn.lin1",
        down="transformer.layer.{i}.ffn.lin2",
        ffn_norm="transformer.layer.{i}.output_layer_norm",
        config={
            "dim": "hidden_size",
            "n_heads": "num_attention_heads",
            "n_layers": "num_hidden_layers",
            "hidden_dim": "intermediate_size",
            "activation": "hidden_act",
        },
    ),
    "electra": Family(
        prefix="electra.",
        classifier=Classifier(pooling="cls+gelu", pooler="classifier.dense", out="classifier.out_proj"),
    ),
    "mpnet": Family(
        prefix="mpnet.",
        classifier=_DENSE_OUT,
        constant_rows=(),
        query=_LAYER + "attention.attn.q",
        key=_LAYER + "attention.attn.k",
        value=_LAYER + "attention.attn.v",
        out=_LAYER + "attention.attn.o",
        attention_norm=_LAYER + "attention.LayerNorm",
        relative_bias="encoder.relative_attention_bias.weight",
        pad_offset=True,
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
