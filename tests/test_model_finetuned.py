"""Fine-tuned Hugging Face folders become models that answer as `transformers` does, or are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_model_parity import FAMILY_CASES, HOSTILE, PARITY, SHAPES, repr_of, tiny

from flyweight.data.messages import Entity, Message, NLUData
from flyweight.errors import CheckpointError, ConfigError, DataError, FlyweightError
from flyweight.export.fly import save
from flyweight.measure.quality import evaluate
from flyweight.model.finetuned import load_finetuned
from flyweight.model.nlu import NLUModel, pad
from flyweight.recipe import compress
from flyweight.runtime.parser import load
from flyweight.techniques.codebook import Codebook
from flyweight.techniques.int8 import Int8
from flyweight.training.teacher import import_teacher

tokenizers = pytest.importorskip("tokenizers")

LETTERS = "abcdefghijklmno"
WORDS = ["book", "fly", "to", "from", "rome", "oslo", "hello", "thanks", "in", "is", "the", "rain", "?", "!", "."]
VOCABULARY = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), *WORDS]  # 50
TEXTS = ["book the rain", "fly from oslo to rome!", "hello", "", "Is the rain in a cabin?", "an odd menu: dine, hike"]
INTENTS = ("greet", "fly", "rain", "other")
TAGS = ("I-date", "O", "B-city", "B-date", "I-city")  # of a folder, in no order of ours


def write_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer.json for the vocabulary of 50 that `tiny` models have."""
    found = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({token: i for i, token in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    found.normalizer = tokenizers.normalizers.BertNormalizer()
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    specials = [(token, VOCABULARY.index(token)) for token in ("[CLS]", "[SEP]")]
    found.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=specials)
    folder.joinpath("tokenizer.json").write_text(found.to_str(), encoding="utf-8")


def finetuned(
    folder: Path,
    head: str = "ForSequenceClassification",
    names: Sequence[str] | None = None,
    family: str = "Bert",
    shape: tuple[int, int, int, int, str] = SHAPES[1],
    **more: Any,
) -> Any:
    """A transformers model of random weights, saved with a tokenizer; its classes are `names`, LABEL_i for None."""
    named = INTENTS if head == "ForSequenceClassification" else TAGS
    model = tiny(family, shape, head, **({"num_labels": len(named if names is None else names)} | more))
    if names is not None:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return model


def change(folder: Path, **entries: Any) -> None:
    """Other entries in config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | entries
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def change_tensors(folder: Path, do: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Other tensors in model.safetensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    do(tensors)
    save_file(tensors, folder / "model.safetensors")


@torch.no_grad()
def their_logits(theirs: Any, ours: NLUModel) -> list[np.ndarray]:
    """What transformers says of TEXTS: (C,) a message, or (T, n_tags) of all its tokens."""
    encoded = ours.tokenizer.encode_batch(TEXTS)
    ids, mask = pad([e.ids for e in encoded])
    padded = torch.where(mask, ids, theirs.config.pad_token_id)
    found = theirs(input_ids=padded, attention_mask=mask.long()).logits.numpy()
    return [row if found.ndim == 2 else row[: len(e.ids)] for row, e in zip(found, encoded, strict=True)]


def gap(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Largest difference; logits of zeros would agree too."""
    assert all(a.shape == b.shape for a, b in zip(found, wanted, strict=True))
    assert max(np.abs(b).max(initial=0) for b in wanted) > 0.2
    return max(float(np.abs(a - b).max(initial=0)) for a, b in zip(found, wanted, strict=True))


def tag_gap(model: NLUModel, theirs: Any, names: Sequence[str]) -> float:
    """Largest difference of the tags that both have, on each word's first token."""
    encoded = model.tokenizer.encode_batch(TEXTS)
    ours = [tags for _, tags in model.logits(encoded)]
    columns = [names.index(tag) for tag in model.labels.tags if tag in names]
    kept = [i for i, tag in enumerate(model.labels.tags) if tag in names]
    assert all(tags is not None for tags in ours)
    wanted = [t[e.first][:, columns] for t, e in zip(their_logits(theirs, model), encoded, strict=True)]
    return gap([tags[:, kept] for tags in ours if tags is not None], wanted)


def refused(folder: Path, kind: type[FlyweightError] = CheckpointError, **settings: Any) -> str:
    """The one line with which a folder is refused."""
    with pytest.raises(kind) as error:
        import_teacher(folder, **settings)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return str(error.value)


# parity -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES[1:3])
@pytest.mark.parametrize(("family", "pad_id", "more"), FAMILY_CASES)
def test_intents_of_every_family(
    family: str, pad_id: int, more: dict[str, Any], shape: tuple[int, int, int, int, str], tmp_path: Path
) -> None:
    theirs = finetuned(tmp_path, names=INTENTS, family=family, shape=shape, **more)
    model = import_teacher(tmp_path)
    assert (model.labels.intents, model.labels.entity_labels) == (INTENTS, ())
    found = [intent for intent, _ in model.logits(model.tokenizer.encode_batch(TEXTS))]
    assert gap(found, their_logits(theirs, model)) <= PARITY


@pytest.mark.parametrize("shape", SHAPES[1:3])
@pytest.mark.parametrize(("family", "pad_id", "more"), FAMILY_CASES)
def test_tags_of_every_family(
    family: str, pad_id: int, more: dict[str, Any], shape: tuple[int, int, int, int, str], tmp_path: Path
) -> None:
    theirs = finetuned(tmp_path, "ForTokenClassification", TAGS, family, shape, **more)
    model = import_teacher(tmp_path)
    assert (model.labels.intents, model.labels.entity_labels) == ((), ("city", "date"))
    assert model.labels.tags == ["O", "B-city", "I-city", "B-date", "I-date"]
    assert tag_gap(model, theirs, TAGS) <= PARITY


@pytest.mark.parametrize(("family", "pad_id", "more"), FAMILY_CASES)
def test_every_tensor_of_a_head_counts(family: str, pad_id: int, more: dict[str, Any], tmp_path: Path) -> None:
    # Guards the guard: a tensor left out of the copy must be seen by the comparison above.
    theirs = finetuned(tmp_path, names=INTENTS, family=family, **more)
    encoder = getattr(theirs, theirs.base_model_prefix)
    inside = {f"{theirs.base_model_prefix}.{name}" for name in encoder.state_dict() if "pooler" not in name}
    heads = [name for name in theirs.state_dict() if name not in inside]
    assert len(heads) == 4  # pooler and classifier, weight and bias
    for name in heads:
        noise = torch.randn(theirs.state_dict()[name].shape, generator=torch.Generator().manual_seed(1))
        change_tensors(tmp_path, lambda tensors, name=name, noise=noise: tensors.update({name: tensors[name] + noise}))
        model = load_finetuned(tmp_path)
        found = [intent for intent, _ in model.logits(model.tokenizer.encode_batch(TEXTS))]
        assert gap(found, their_logits(theirs, model)) > 100 * PARITY, name
        change_tensors(tmp_path, lambda tensors, name=name: tensors.update({name: theirs.state_dict()[name]}))


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
@pytest.mark.parametrize("family", ["Bert", "Roberta", "DistilBert", "Electra", "MPNet"])
def test_a_folder_that_does_not_say_what_it_is(family: str, head: str, tmp_path: Path) -> None:
    theirs = finetuned(tmp_path, head, INTENTS if head == "ForSequenceClassification" else TAGS, family)
    change(tmp_path, architectures=None)
    model = import_teacher(tmp_path)
    assert model.card.steps == [{"imported": f"{theirs.config.model_type} {head}"}]


def test_half_precision_and_several_files(tmp_path: Path) -> None:
    theirs = finetuned(tmp_path, names=INTENTS).half()
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = import_teacher(tmp_path)
    found = [intent for intent, _ in model.logits(model.tokenizer.encode_batch(TEXTS))]
    assert gap(found, their_logits(theirs.float(), model)) <= PARITY


def test_long_messages_lose_their_tail(tmp_path: Path) -> None:
    finetuned(tmp_path, names=INTENTS, family="Roberta")
    long = "rain " * 100
    for asked, n in ((128, 38), (10, 10), (4, 4)):  # 40 positions, of which RoBERTa reserves 2
        model = import_teacher(tmp_path, max_tokens=asked)
        assert len(model.tokenizer.encode(long).ids) == n
        assert model.answers([long])[0].intent in INTENTS
    assert refused(tmp_path, ConfigError, max_tokens=3) == "max_tokens is 3; at least 4"


# names --------------------------------------------------------------------------------------------------------------


def test_names_come_from_the_folder_or_are_given(tmp_path: Path) -> None:
    finetuned(tmp_path)
    message = refused(tmp_path)
    assert message == (
        f"{tmp_path}: config.json names the classes LABEL_0 to LABEL_3, which says nothing; "
        "give their names in this order with --labels FILE"
    )
    assert import_teacher(tmp_path, labels=["d", "c", "b", "a"]).labels.intents == ("d", "c", "b", "a")
    change(tmp_path, id2label={str(i): name for i, name in enumerate(INTENTS)})
    assert import_teacher(tmp_path).labels.intents == INTENTS
    assert import_teacher(tmp_path, labels=["d", "c", "b", "a"]).labels.intents == ("d", "c", "b", "a")


@pytest.mark.parametrize("table", [None, {}, {"1": "a", "2": "b"}, ["a", "b", "c", "d"], {"0": "a", "2": "b"}])
def test_class_tables_that_are_none(table: Any, tmp_path: Path) -> None:
    finetuned(tmp_path, names=INTENTS)
    change(tmp_path, id2label=table)
    assert refused(tmp_path) == f"{tmp_path}: config.json has no id2label from 0 on; give the class names with --labels"


@pytest.mark.parametrize(
    ("name", "found"), [(["x"], "['x']"), (None, "None"), (3, "3"), (True, "True"), ({"a\nb": 1}, "{'a\\nb': 1}")]
)
def test_class_names_that_are_no_texts(name: Any, found: str, tmp_path: Path) -> None:
    finetuned(tmp_path, names=INTENTS)
    change(tmp_path, id2label={"0": "a", "1": name, "2": "b", "3": "c"})
    allowed = "allowed: texts (or name them with --labels FILE)"
    assert refused(tmp_path) == f"{tmp_path}: id2label names a class {found}; {allowed}"


@pytest.mark.parametrize("value", HOSTILE, ids=repr_of)
@pytest.mark.parametrize("key", ["model_type", "architectures", "problem_type", "id2label"])
def test_hostile_entries(key: str, value: Any, tmp_path: Path) -> None:
    finetuned(tmp_path, names=INTENTS)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    names_nothing = key == "architectures" and value != ["a\nb"]  # then the tensors say which head it is
    if names_nothing or (key == "problem_type" and value is None):
        assert import_teacher(tmp_path).labels.intents == INTENTS
    else:
        assert len(refused(tmp_path)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["a"], "1 class name(s)"),
        ([], "0 class name(s)"),
        (["a", "b", "a", "c"], "4 class name(s), 'a' more than once"),
        (["a", "b", " ", "c"], "4 class name(s)"),
    ],
)
def test_names_that_are_no_names(names: list[str], found: str, tmp_path: Path) -> None:
    finetuned(tmp_path)
    message = refused(tmp_path, ConfigError, labels=names)
    assert message == f"labels: {found}; allowed: at least 2 different names, none empty"


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
def test_a_wrong_number_of_names(head: str, n: int, tmp_path: Path) -> None:
    finetuned(tmp_path, head, num_labels=4)
    message = refused(tmp_path, labels=["O", "B-a", "I-a", "B-b", "I-b"][:n])
    assert message == f"{tmp_path}: 'classifier.weight' is (4, 32); config.json and the class names say ({n}, 32)"


def test_names_do_not_repeat_a_single_row(tmp_path: Path) -> None:
    finetuned(tmp_path, num_labels=1)  # one row would fit any number of names, repeated
    message = refused(tmp_path, labels=["a", "b"])
    assert message == f"{tmp_path}: 'classifier.weight' is (1, 32); config.json and the class names say (2, 32)"


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_other_problems_than_one_label(problem: str, tmp_path: Path) -> None:
    finetuned(tmp_path, names=INTENTS)
    change(tmp_path, problem_type=problem)
    assert refused(tmp_path) == f"{tmp_path}: problem_type is '{problem}'; allowed: one label a message or word"
    change(tmp_path, problem_type="single_label_classification")
    assert import_teacher(tmp_path).labels.intents == INTENTS


def test_one_class_is_no_choice(tmp_path: Path) -> None:
    finetuned(tmp_path, num_labels=1)  # what transformers makes for a regression
    change(tmp_path, id2label={"0": "LABEL_0"})
    message = refused(tmp_path)
    assert message == f"{tmp_path}: id2label: 1 class name(s); allowed: at least 2 different names, none empty"


# tags ---------------------------------------------------------------------------------------------------------------


LONG = " ".join([*LETTERS, *WORDS])


def balanced(folder: Path, names: Sequence[str]) -> Any:
    """A tagger whose classes all win somewhere in LONG."""
    theirs = finetuned(folder, "ForTokenClassification", names)
    with torch.no_grad():
        ids = torch.tensor([[0, *(VOCABULARY.index(word) for word in LONG.split()), 2]])
        theirs.classifier.bias -= theirs(input_ids=ids).logits[0].mean(0)
    theirs.save_pretrained(folder)
    return theirs


def logits_of(model: NLUModel, text: str) -> dict[str, np.ndarray]:
    """Tag -> its logits, one a word."""
    [(_, tags)] = model.logits([model.tokenizer.encode(text)])
    assert tags is not None
    return dict(zip(model.labels.tags, tags.T, strict=True))


def test_tags_without_inside(tmp_path: Path) -> None:
    names = ("B-date", "B-city", "O")
    theirs = balanced(tmp_path, names)
    model = import_teacher(tmp_path)
    assert tag_gap(model, theirs, names) <= PARITY
    found = logits_of(model, LONG)
    for name in ("city", "date"):
        assert found[f"I-{name}"] == pytest.approx(found[f"B-{name}"] - 50, abs=1e-4)
    encoded = model.tokenizer.encode(LONG)
    best = [max(names, key=lambda tag: found[tag][w]) for w in range(len(encoded.words))]
    wanted = [Entity(*span, tag[2:]) for span, tag in zip(encoded.words, best, strict=True) if tag != "O"]
    [answer] = model.answers([LONG])
    assert answer.entities == tuple(wanted)  # every word for itself: no I-x is ever chosen
    assert len({e.entity for e in wanted}) == 2


def test_the_missing_inside_is_never_chosen_whatever_the_size_of_the_logits(tmp_path: Path) -> None:
    finetuned(tmp_path, "ForTokenClassification", ("B-date", "B-city", "O"))
    change_tensors(tmp_path, lambda t: t.update({"classifier.bias": t["classifier.bias"] - 1000}))
    model = import_teacher(tmp_path)
    for text in TEXTS:
        [answer] = model.answers([text])
        assert all(span in model.tokenizer.encode(text).words for span in ((e.start, e.end) for e in answer.entities))


def test_tags_with_inside_only(tmp_path: Path) -> None:
    names = ("O", "I-city", "I-date")
    theirs = balanced(tmp_path, names)
    model = import_teacher(tmp_path)
    assert tag_gap(model, theirs, names) <= PARITY
    found = logits_of(model, LONG)
    for name in ("city", "date"):
        assert found[f"B-{name}"] == pytest.approx(found[f"I-{name}"] - 2**-10, abs=1e-5)
    encoded = model.tokenizer.encode(LONG)
    best = [max(names, key=lambda tag: found[tag][w])[2:] for w in range(len(encoded.words))]
    wanted: list[list[Any]] = []
    for word, (label, before) in enumerate(zip(best, ["", *best], strict=False)):
        if label and label == before:
            wanted[-1][1] = encoded.words[word][1]  # neighbours of one label are one entity
        elif label:
            wanted.append([*encoded.words[word], label])
    [answer] = model.answers([LONG])
    assert [[e.start, e.end, e.entity] for e in answer.entities] == wanted
    assert {e[2] for e in wanted} == {"city", "date"}
    assert len(wanted) < sum(label != "" for label in best)  # some have several words


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("O", "city", "date"), "the tag 'city' among 3"),
        (("O", "B-city", "E-city"), "the tag 'E-city' among 3"),
        (("O", "B-", "I-a"), "the tag 'B-' among 3"),
        (("O", "B-a#b", "I-a#b"), "the tag 'B-a#b' among 3"),
        (("B-city", "I-city", "B-date"), "no tag 'O' among 3"),
    ],
)
def test_tags_that_are_not_bio(names: tuple[str, ...], found: str, tmp_path: Path) -> None:
    finetuned(tmp_path, "ForTokenClassification", names)
    wanted = f"{tmp_path}: {found}; allowed: O, B-name and I-name (name them with --labels FILE)"
    assert refused(tmp_path) == wanted
    assert import_teacher(tmp_path, labels=["O", "B-a", "I-a"]).labels.entity_labels == ("a",)


# folders ------------------------------------------------------------------------------------------------------------


def test_folders_without_a_head(tmp_path: Path) -> None:
    finetuned(tmp_path, "Model", num_labels=2)
    allowed = "allowed: a *ForSequenceClassification or *ForTokenClassification (a base is fine-tuned with"
    assert f"{tmp_path} holds a BertModel; {allowed}" in refused(tmp_path)
    for nothing in (None, [], "none", 3):
        change(tmp_path, architectures=nothing)
        assert f"{tmp_path} holds an encoder without a head; {allowed}" in refused(tmp_path)
    change(tmp_path, architectures=["BertForMaskedLM"])
    assert "holds a BertForMaskedLM; allowed" in refused(tmp_path)
    change(tmp_path, architectures=["BertForSequenceClassification"])
    message = refused(tmp_path, labels=["a", "b"])
    assert message == f"{tmp_path}: the checkpoint lacks the tensor 'bert.pooler.dense.weight'"


@pytest.mark.parametrize("name", ["bert.pooler.dense.bias", "classifier.weight", "classifier.bias"])
def test_a_tensor_of_the_head_is_missing_or_broken(name: str, tmp_path: Path) -> None:
    finetuned(tmp_path, names=INTENTS)
    change_tensors(tmp_path, lambda t: t.update({name: t[name] * float("nan")}))
    wanted = f"{tmp_path}: tensor '{name}' holds NaN or infinity; such a model cannot answer"
    assert refused(tmp_path) == wanted
    change_tensors(tmp_path, lambda t: t.pop(name))
    assert refused(tmp_path) == f"{tmp_path}: the checkpoint lacks the tensor '{name}'"


def test_nan_in_the_encoder(tmp_path: Path) -> None:
    finetuned(tmp_path, names=INTENTS)
    name = "bert.encoder.layer.1.output.dense.weight"
    change_tensors(tmp_path, lambda t: t[name][3].fill_(float("inf")))
    assert f"tensor '{name}' holds NaN or infinity" in refused(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    theirs = finetuned(tmp_path, names=INTENTS)
    (tmp_path / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path} holds no .safetensors file (pickled weights are not read); write one with")


def test_folders_that_are_no_checkpoints(tmp_path: Path, tiny_model: NLUModel) -> None:
    assert "config.json is missing" in refused(tmp_path)
    tiny_model.save(tmp_path / "bot")
    assert refused(tmp_path / "bot") == f"{tmp_path / 'bot'} is a Flyweight model already; use it as it is"
    finetuned(tmp_path, names=INTENTS)
    change(tmp_path, model_type="deberta-v2")
    assert "model_type 'deberta-v2' is not supported; allowed: bert, ernie" in refused(tmp_path)
    change(tmp_path, model_type="bert")
    (tmp_path / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(tmp_path)


# afterwards ---------------------------------------------------------------------------------------------------------


def city_data(names: Sequence[str | None] = INTENTS, n: int = 48) -> NLUData:
    """Messages with the entity city and any intents."""
    messages = []
    for i in range(n):
        city = ("rome", "oslo")[i % 2]
        text = f"fly {LETTERS[i % 15]} {LETTERS[i // 15]} to {city}"
        messages.append(Message(text, names[i % len(names)], (Entity(len(text) - 4, len(text), "city"),)))
    return NLUData(tuple(messages[:32]), tuple(messages[32:40]), tuple(messages[40:]), synonyms={"Rome": "Roma"})


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForTokenClassification"])
def test_saved_and_loaded(head: str, tmp_path: Path) -> None:
    names = INTENTS if head == "ForSequenceClassification" else TAGS
    finetuned(tmp_path / "theirs", head, names, "Electra", embedding_size=20)
    model = import_teacher(tmp_path / "theirs", city_data())
    again = NLUModel.load(model.save(tmp_path / "ours"))
    assert again.describe() == model.describe()
    assert again.card == model.card
    assert again.labels == model.labels
    encoded = model.tokenizer.encode_batch(TEXTS)
    for (a, b), (c, d) in zip(model.logits(encoded), again.logits(encoded), strict=True):
        assert np.array_equal(a, c)
        assert (b is None) == (d is None)
        assert b is None or np.array_equal(b, d)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("Bert", "ForSequenceClassification"),
        ("Roberta", "ForTokenClassification"),
        ("DistilBert", "ForSequenceClassification"),
        ("Electra", "ForSequenceClassification"),
        ("MPNet", "ForTokenClassification"),
    ],
)
def test_the_engine_answers_like_transformers(family: str, head: str, tmp_path: Path) -> None:
    names = INTENTS if head == "ForSequenceClassification" else TAGS
    theirs = finetuned(tmp_path / "theirs", head, names, family)
    model = import_teacher(tmp_path / "theirs", city_data())
    nlu = load(save(model, tmp_path / "float.fly"))
    encoded = nlu.tokenizer.encode_batch(TEXTS)
    found = nlu.engine.logits(encoded)
    wanted = their_logits(theirs, model)
    if head == "ForSequenceClassification":
        assert gap([intent for intent, _ in found], wanted) <= PARITY
    else:
        columns = [names.index(tag) for tag in nlu.labels.tags]
        wanted = [t[e.first][:, columns] for t, e in zip(wanted, encoded, strict=True)]
        assert gap([tags for _, tags in found if tags is not None], wanted) <= PARITY
    for recipe in ([Int8()], [Codebook(encoder=16, embeddings=256, heads=256)]):
        small = compress(model, city_data(), recipe, measure=False, progress=False)
        nlu = load(save(small, tmp_path / "small.fly"))  # the gate compares blocks and answers
        assert [a.frame for a in nlu.answers(TEXTS)] == [a.frame for a in small.answers(TEXTS)]


def test_a_model_of_entities_alone(tmp_path: Path) -> None:
    finetuned(tmp_path / "theirs", "ForTokenClassification", TAGS)
    data = city_data()
    model = import_teacher(tmp_path / "theirs", data)
    nlu = load(save(model, tmp_path / "tagger.fly"))
    for answerer in (model, nlu):
        result = answerer.parse("fly to rome")
        assert (result["intent"], result["intent_ranking"]) == ({"name": None, "confidence": 0.0}, [])
        assert result["text"] == "fly to rome"
    [answer] = nlu.answers(["fly to rome"])
    assert (answer.intent, answer.confidence, len(answer.probabilities)) == ("", 0.0, 0)
    assert nlu.parse_batch(TEXTS) == [nlu.parse(text) for text in TEXTS] == [model.parse(text) for text in TEXTS]
    quality = evaluate(nlu, data.test, against=model)
    assert (quality.n_intent_messages, quality.intent_macro_f1, quality.exact_frame_accuracy) == (0, 0.0, 0.0)
    assert (quality.n_gold_spans, quality.n_flips, quality.out_of_scope) == (8, 0, None)
    assert quality.span_f1 == evaluate(model, data.test).span_f1
    outside = [Message("hello", "out_of_scope"), Message("rain", "rain")]
    assert evaluate(nlu, outside).out_of_scope is None  # no scores, good or bad, for what it does not do


def test_data_give_what_the_folder_lacks(tmp_path: Path) -> None:
    finetuned(tmp_path, names=INTENTS)
    data = city_data()
    model = import_teacher(tmp_path, data, fallback_rate=0.25)
    assert model.labels.temperature != 1
    assert 0 < model.labels.threshold < 1
    assert model.labels.synonyms == {"rome": "Roma"}
    assert model.card.data_fingerprint == data.fingerprint()
    assert set(model.card.golden) <= {m.text for m in data.train}
    assert model.card.base == tmp_path.name  # not its place on this machine
    bare = import_teacher(tmp_path)
    assert (bare.labels.temperature, bare.labels.threshold, bare.labels.synonyms) == (1.0, 0.0, {})
    assert len(bare.card.golden) == 16


def test_data_of_other_labels_are_refused(tmp_path: Path) -> None:
    finetuned(tmp_path / "intents", names=INTENTS)
    message = refused(tmp_path / "intents", DataError, data=city_data(("a", "b")))
    assert message == (
        "no label of the data ('a', 'b') is one of the model's ('fly', 'greet', 'other', 'rain'); "
        "give messages of the same labels, or the class names with --labels FILE"
    )
    assert "no label of the data (nothing)" in refused(tmp_path / "intents", DataError, data=city_data((None,)))
    finetuned(tmp_path / "tags", "ForTokenClassification", ("O", "B-person", "I-person"))
    assert "no label of the data ('city') is one of the model's ('person')" in refused(
        tmp_path / "tags", DataError, data=city_data()
    )
    assert import_teacher(tmp_path / "intents", city_data(("fly", "strange"))).labels.intents == INTENTS


def test_a_threshold_needs_messages_and_intents(tmp_path: Path) -> None:
    finetuned(tmp_path / "intents", names=INTENTS)
    finetuned(tmp_path / "tags", "ForTokenClassification", TAGS)
    data = city_data()
    nothing = [None, data.with_splits(data.train, (), data.test), city_data((None,))]
    for given in nothing:
        message = refused(tmp_path / "intents", ConfigError, data=given, fallback_rate=0.1)
        assert message.startswith("fallback_rate is 0.1, but no validation message has an intent of the model to fit")
    message = refused(tmp_path / "tags", ConfigError, data=data, fallback_rate=0.1)
    assert message == "fallback_rate is 0.1; a model without intents has no threshold, leave it out"
    for rate in (1, -0.1, float("nan")):
        assert f"fallback_rate is {rate}; allowed" in refused(
            tmp_path / "intents", ConfigError, data=data, fallback_rate=rate
        )


def test_compressing_with_data_of_no_intents(tmp_path: Path) -> None:
    finetuned(tmp_path, names=INTENTS)
    model = import_teacher(tmp_path, city_data(), fallback_rate=0.25)
    small = compress(model, city_data((None,)), [Int8()], progress=False)
    assert small.labels == model.labels  # nothing to fit on: what was fitted stays
    receipt = small.card.steps[-1]
    assert (receipt["quality"]["n_intent_messages"], receipt["quality"]["n_messages"]) == (0, 8)
