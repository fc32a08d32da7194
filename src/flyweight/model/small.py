"""The founding experiment's classifier: a 2-layer bidirectional transformer trained from scratch.

Input embedding layer -> 2 layers x 128 (4 heads, FFN 512) -> output embedding layer: the labels are embedded too, and
an intent's score is the inner product of the pooled message with its label's embedding. Its WordPiece vocabulary is
learned from the training messages.
"""

from __future__ import annotations

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
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(list(texts), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", SPECIAL.index("[CLS]")), ("[SEP]", SPECIAL.index("[SEP]"))]
    )
    return tokenizer.to_str()


def small_config(vocab_size: int) -> EncoderConfig:
    """2 layers x 128."""
    return EncoderConfig(
        vocab_size=vocab_size,
        hidden=128,
        head_size=32,
        layers=(LayerShape(heads=4, ffn=512),) * 2,
        max_positions=MAX_POSITIONS,
    )
