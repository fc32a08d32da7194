"""Folders with an older vocabulary give the ids that `transformers` gives, or are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_model_parity import SHAPES, tiny

from flyweight.errors import CheckpointError
from flyweight.model.checkpoints import HUB_FILES
from flyweight.model.vocabularies import CONVERT, load_tokenizer
from flyweight.training.teacher import import_teacher

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES = [
    *"abcdefghijklmnopqrstuvwxyz",
    *"ABCH",
    *"éÉü中文!?.,'",
    "1",
    "🌧",
    "hello",
    "Hello",
    "café",
    "cafe",
    "the",
    "un",
]
BERT = [*SPECIALS, *PIECES, *(f"##{p}" for p in PIECES if p.isalpha()), "[new]"]
MPNET = ["<s>", "<pad>", "</s>", "<unk>", *PIECES, *(f"##{p}" for p in PIECES if p.isalpha()), "[UNK]", "<mask>"]
MPNET_NAMES = {
    "cls_token": "<s>",
    "sep_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "[UNK]",
    "mask_token": "<mask>",
}
MERGES = ["h e", "l l", "he ll", "Ġ hell", "hell o", "Ġ h", "Ġ a", "i n", "in g", "Ġ Ġ", "Ã ©"]
BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", *BYTES, *(m.replace(" ", "") for m in MERGES), "<mask>"]
# transformers 5 takes the mask as any other token unless told; 4, with which these folders were made, was told.
MASK = {"mask_token": {"content": "<mask>", "lstrip": True, "__type": "AddedToken"}}
TEXTS = [
    "Hello hello cafés CAFÉ uncafé",
    "  The Hello,\tcan't\nstop! ",
    "中文café中 🌧️ 🌧",
    "e\u0301 E\u0301 \u200bzero \x00 \ufffd \xa0width",
    "[MASK] a [CLS] b [SEP][PAD] [mask] [new] [NEW] <mask> <s> </s> <pad> a<mask>b",
    "xyzzyxyzzy" * 12,  # longer than WordPiece's 100 characters
    "hello  hell  ing in'g 123 I'm we'll",
    "",
    " ",
]


def folder(place: Path, kind: str, settings: dict[str, Any] | None, **files: str) -> Path:
    """A model folder of a family without a tokenizer.json."""
    place.mkdir(exist_ok=True)
    if kind == "roberta":
        files |= {"vocab.json": json.dumps({token: i for i, token in enumerate(ROBERTA)})}
        files |= {"merges.txt": "#version: 0.2\n" + "\n".join(MERGES) + "\n"}
    else:
        files = {"vocab.txt": "\n".join(MPNET if kind == "mpnet" else BERT) + "\n"} | files
    files["config.json"] = json.dumps({"model_type": kind})
    if settings is not None:
        files["tokenizer_config.json"] = json.dumps(settings)
    for name, content in files.items():
        (place / name).write_text(content, encoding="utf-8", newline="")
    return place


def ids(place: Path, texts: list[str]) -> list[list[int]]:
    return [e.ids.tolist() for e in load_tokenizer(place, 512).encode_batch(texts)]


def theirs(place: Path, texts: list[str]) -> list[list[int]]:
    found = transformers.AutoTokenizer.from_pretrained(place)
    return [found(text)["input_ids"] for text in texts]


CASES: dict[str, tuple[str, dict[str, Any] | None]] = {
    "bert, nothing said": ("bert", None),
    "cased": ("bert", {"do_lower_case": False}),
    "lower case, accents kept": ("bert", {"do_lower_case": True, "strip_accents": False}),
    "cased, accents stripped": ("bert", {"do_lower_case": False, "strip_accents": True}),
    "strip_accents null": ("bert", {"do_lower_case": False, "strip_accents": None}),
    "chinese in words": ("bert", {"tokenize_chinese_chars": False}),
    "never split": ("bert", {"additional_special_tokens": ["[new]"]}),
    "distilbert": ("distilbert", {"do_lower_case": True}),
    "electra": ("electra", {"do_lower_case": False}),
    "ernie": ("ernie", None),
    "mpnet": ("mpnet", MPNET_NAMES),
    "roberta": ("roberta", MASK),
    "roberta, space first": ("roberta", MASK | {"add_prefix_space": True}),
    "roberta, trimming said": ("roberta", MASK | {"trim_offsets": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_transformers(case: str, tmp_path: Path) -> None:
    place = folder(tmp_path, *CASES[case])
    assert ids(place, TEXTS) == theirs(place, TEXTS)


LETTERS = st.sampled_from([*PIECES, *SPECIALS, *"\t\n  zqÄß中\u0301\u200b\ud7ff·—", "<mask>", "ing", "hell"])


@pytest.mark.parametrize("case", ["bert, nothing said", "cased", "mpnet", "roberta"])
@given(texts=st.lists(st.lists(LETTERS, max_size=12).map("".join), min_size=20, max_size=20))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ids_of_random_texts(case: str, texts: list[str], tmp_path: Path) -> None:
    place = folder(tmp_path, *CASES[case])
    assert ids(place, texts) == theirs(place, texts)


def test_word_pieces_by_hand(tmp_path: Path) -> None:
    number = {token: i for i, token in enumerate(BERT)}

    def wanted(*pieces: str) -> list[list[int]]:
        return [[number[p] for p in ("[CLS]", *pieces, "[SEP]")]]

    lower = folder(tmp_path / "lower", "bert", None)
    assert ids(lower, ["Hello CAFÉ, unthe[MASK]!"]) == wanted("hello", "cafe", ",", "un", "##the", "[MASK]", "!")


def test_word_pieces_keep_their_case_by_hand(tmp_path: Path) -> None:
    number = {token: i for i, token in enumerate(BERT)}
    cased = folder(tmp_path, "bert", {"do_lower_case": False})
    # "Xa": no piece "X", so the word as a whole is unknown
    wanted = [number[p] for p in ("[CLS]", "Hello", "hello", "café", "A", "##a", "[UNK]", "[SEP]")]
    assert ids(cased, ["Hello hello café Aa Xa"]) == [wanted]


def test_bytes_by_hand(tmp_path: Path) -> None:
    number = {token: i for i, token in enumerate(ROBERTA)}

    def wanted(*pieces: str) -> list[int]:
        return [number[p] for p in ("<s>", *pieces, "</s>")]

    place = folder(tmp_path / "plain", "roberta", None)
    # merges in their order: h e, l l, he ll; then "Ġ hell" comes before "hell o"
    assert ids(place, ["hello hello", "é", "a <mask>"]) == [
        wanted("hello", "Ġhell", "o"),
        wanted("Ã©"),  # one merge of the two bytes of é
        wanted("a", "<mask>"),  # the mask takes the blank before it
    ]
    spaced = folder(tmp_path / "spaced", "roberta", {"add_prefix_space": True})
    assert ids(spaced, ["hello"]) == [wanted("Ġhell", "o")]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_line_ends_do_not_matter(end: str, tmp_path: Path) -> None:
    vocabulary = ("\r\n" if end == "\r\n" else "\n").join(BERT) + end
    place = folder(tmp_path / "one", "bert", None, **{"vocab.txt": vocabulary})
    assert ids(place, TEXTS) == ids(folder(tmp_path / "two", "bert", None), TEXTS)


def test_an_empty_line_is_a_token_too(tmp_path: Path) -> None:
    gap = [*SPECIALS, "", *BERT[5:]]
    place = folder(tmp_path, "bert", None, **{"vocab.txt": "\n".join(gap) + "\n"})
    assert ids(place, TEXTS) == theirs(place, TEXTS)
    assert ids(place, ["a"]) == [[2, gap.index("a"), 3]]


def test_tokenizer_json_comes_first(tmp_path: Path) -> None:
    place = folder(tmp_path / "a", "bert", None)
    other = json.loads(load_tokenizer(place, 32).source)
    other["normalizer"]["lowercase"] = False
    (place / "tokenizer.json").write_text(json.dumps(other))
    number = {token: i for i, token in enumerate(BERT)}
    assert ids(place, ["Hello"]) == [[2, number["Hello"], 3]]


def test_the_length_limit_counts(tmp_path: Path) -> None:
    place = folder(tmp_path, "bert", None)
    [found] = load_tokenizer(place, 5).encode_batch(["a b c d e f"])
    number = {token: i for i, token in enumerate(BERT)}
    assert found.ids.tolist() == [2, number["a"], number["b"], number["c"], 3]
    assert found.words == [(0, 1), (2, 3), (4, 5)]


def test_a_finetuned_folder_with_a_vocabulary(tmp_path: Path) -> None:
    theirs = tiny("Bert", SHAPES[1], "ForSequenceClassification", vocab_size=len(BERT), num_labels=3)
    theirs.config.id2label = {0: "a", 1: "b", 2: "c"}
    theirs.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(BERT), encoding="utf-8")
    model = import_teacher(tmp_path)
    model.save(tmp_path / "bot")  # with a tokenizer.json: the model needs no vocabulary any more
    assert (tmp_path / "bot" / "tokenizer.json").is_file()
    assert model.answers(["Hello the café"])[0].intent in "abc"
    (tmp_path / "vocab.txt").write_text("\n".join([*BERT, *map(str, range(50))]), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"the tokenizer has {len(BERT) + 49} ids, the model {len(BERT)} word"):
        import_teacher(tmp_path)


def test_what_a_base_of_the_hub_needs_is_fetched() -> None:
    names = {"tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "tokenizer_config.json", "config.json"}
    assert names <= set(HUB_FILES)


# refusals -----------------------------------------------------------------------------------------------------------


def refused(place: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        load_tokenizer(place, 128)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "spiece.model", "tokenizer.model"])
def test_sentencepiece_alone(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\x0a\x0e")
    assert refused(tmp_path) == f"{tmp_path} has a SentencePiece model, but no tokenizer.json; {CONVERT}"


def test_no_vocabulary_at_all(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path / 'tokenizer.json'} is missing; a model folder needs a tokenizer.json"


def test_half_a_vocabulary(tmp_path: Path) -> None:
    place = folder(tmp_path, "roberta", None)
    (place / "merges.txt").unlink()
    assert refused(place) == f"{place} has a vocab.json, but no merges.txt; both are needed, or a tokenizer.json"


def test_special_tokens_of_other_names(tmp_path: Path) -> None:
    place = folder(tmp_path / "mpnet", "mpnet", None)  # its names stand in tokenizer_config.json
    assert refused(place) == f"{place / 'vocab.txt'} lacks the special token '[CLS]'; {CONVERT}"
    place = folder(tmp_path / "gpt", "roberta", {"cls_token": "<|begin|>"})
    assert refused(place) == f"{place / 'vocab.json'} lacks the special token '<|begin|>'; {CONVERT}"
    nonsense = {"cls_token": 3, "sep_token": {"content": None}, "unk_token": None, "do_lower_case": True}
    place = folder(tmp_path / "odd", "bert", nonsense)  # what is no token is the family's usual one
    assert ids(place, ["a"]) == [[2, BERT.index("a"), 3]]


@pytest.mark.parametrize("where", ["added_tokens.json", "added_tokens_decoder", "additional_special_tokens"])
def test_tokens_behind_the_vocabulary(where: str, tmp_path: Path) -> None:
    # Their ids would be others than those the model was trained with.
    if where == "added_tokens.json":
        place = folder(tmp_path, "bert", None, **{where: json.dumps({"[NEW]": len(BERT), "[new]": 3})})
    else:
        entry: Any = {str(len(BERT)): {"content": "[NEW]", "special": True}}
        place = folder(tmp_path, "bert", {where: entry if where.endswith("decoder") else ["[NEW]", "[new]"]})
    assert refused(place) == f"{place} adds tokens to its vocabulary ('[NEW]'); {CONVERT}"


def test_damaged_files(tmp_path: Path) -> None:
    place = folder(tmp_path / "a", "bert", None, **{"tokenizer_config.json": "{"})
    assert refused(place).startswith(f"{place / 'tokenizer_config.json'} is no JSON: ")
    place = folder(tmp_path / "b", "bert", None)
    (place / "vocab.txt").write_bytes(b"[CLS]\n\xff\n")
    assert refused(place).startswith(f"{place}: the vocabulary cannot be read ('utf-8' codec")
    place = folder(tmp_path / "c", "roberta", None)
    (place / "vocab.json").write_text("[1, 2]")
    assert refused(place).startswith(f"{place}: the vocabulary cannot be read (")
    place = folder(tmp_path / "d", "roberta", None)
    (place / "merges.txt").write_text("#version: 0.2\nq\n")
    assert refused(place).startswith(f"{place}: the vocabulary cannot be read (")
