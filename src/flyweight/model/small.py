"""The founding experiment's classifier: a 2-layer bidirectional transformer trained from scratch.

Input embedding layer -> 2 layers x 128 (4 heads, FFN 512) -> output embedding layer: the labels are embedded too, and
an intent's score is the inner product of the pooled message with its label's embedding. Its WordPiece vocabulary is
learned from the training messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from flyweight.model.encoder import EncoderConfig, LayerShape

VOCABULARY = 4000
MAX_POSITIONS = 128
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCABULARY) -> str:
    """A lower-casing WordPiece tokenizer.json learned from the messages; the same text gives the same tokenizer."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    # Every printable ASCII character stays in the alphabet, so that few words end as [UNK].
    alphabet = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    # The trainer numbers "##x" pieces in the order of a hash map, and ties between merges go by number: named in
    # advance, as special tokens, they have one order. Below they become ordinary pieces again.
    texts = list(texts)
    inner = [f"##{c}" for c in sorted(_inner_characters(tokenizer, texts))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL + inner, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]"))]
    )
    source = json.loads(tokenizer.to_str())
    source["added_tokens"] = [token for token in source["added_tokens"] if token["content"] in SPECIAL]
    return json.dumps(source, ensure_ascii=False, indent=1)


def _inner_characters(tokenizer: Tokenizer, texts: Iterable[str]) -> set[str]:
    """All characters that stand within a word, not at its beginning."""
    found: set[str] = set()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            found.update(word[1:])
    return found


def small_config(vocab_size: int) -> EncoderConfig:
    """2 layers x 128."""
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden=128,
        head_size=32,
        layers=(LayerShape(heads=4, ffn=512),) * 2,
        max_positions=MAX_POSITIONS,
    )
