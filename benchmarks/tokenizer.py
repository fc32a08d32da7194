"""The native tokenizer against the `tokenizers` package: microseconds a message, call by call in one process.

    python benchmarks/tokenizer.py [folder or file of messages]

Default: the embedded assistant data. All contenders take the same message in turn, 20 rounds; a message's time is its
best round. `native` is the C++ work with one call from Python; `native, arrays` makes what `Tokenizer.encode` returns;
`package` is `tokenizers` alone, `package, arrays` with the same arrays. Writes benchmarks/results/tokenizer.json.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from flyweight.data.load import load_data
from flyweight.measure.machine import machine
from flyweight.model.checkpoints import resolve_base
from flyweight.tokenizer import Tokenizer
from flyweight.tokenizer.package import Package

sys.path.insert(0, str(Path(__file__).parents[1] / "native" / "tokenizer"))
from charsmap import charsmap

RESULTS = Path(__file__).parent / "results" / "tokenizer.json"
N_MESSAGES, N_ROUNDS, N_LOADS, MAX_TOKENS = 500, 20, 10, 128


def byte_level(texts: list[str]) -> str:
    """A byte-level BPE tokenizer.json of RoBERTa's kind, learned from the messages."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=2000, initial_alphabet=alphabet, show_progress=False)
    )
    return made.to_str()


def unigram(texts: list[str]) -> str:
    """A Unigram tokenizer.json of XLM-R's kind, learned from the messages, with a charsmap of NFKC."""
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.Precompiled(charsmap(nfkc_rules()))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    ends = [("<s>", 0), ("</s>", 1)]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    special = [*(name for name, _ in ends), "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=2000, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator(texts, trainer)
    return made.to_str()


def nfkc_rules() -> dict[str, str]:
    """Each character that NFKC changes, and what it becomes."""
    characters = map(chr, [*range(1, 0xD800), *range(0xE000, 0x30000)])
    return {c: found for c in characters if (found := unicodedata.normalize("NFKC", c)) != c}


def best_us(calls: dict[str, Callable[[str], object]], texts: list[str]) -> dict[str, list[float]]:
    """Per contender, each message's best time in microseconds."""
    best = {name: [float("inf")] * len(texts) for name in calls}
    for _ in range(N_ROUNDS):
        for i, text in enumerate(texts):
            for name, call in calls.items():
                start = time.perf_counter_ns()
                call(text)
                best[name][i] = min(best[name][i], (time.perf_counter_ns() - start) / 1e3)
    return best


def load_ms(make: Callable[[], object]) -> float:
    times = []
    for _ in range(N_LOADS):
        start = time.perf_counter()
        make()
        times.append((time.perf_counter() - start) * 1e3)
    return min(times)


def main() -> None:
    data = sys.argv[1] if len(sys.argv) > 1 else "assistant"
    texts = list(dict.fromkeys(m.text for m in load_data(data).messages))[:N_MESSAGES]
    sources = {
        "WordPiece (MiniLM)": (resolve_base("minilm") / "tokenizer.json").read_text(encoding="utf-8"),
        "byte-level BPE": byte_level(texts),
        "Unigram": unigram(texts),
    }
    result: dict[str, object] = {"machine": machine(), "data": Path(data).name, "n_messages": len(texts)}
    for title, source in sources.items():
        ours, package = Tokenizer(source, MAX_TOKENS), Package(source, MAX_TOKENS, "")
        assert ours.native is not None, ours.refusal
        calls: dict[str, Callable[[str], object]] = {
            "native": ours.native.count,
            "native, arrays": ours.encode,
            "package": package.tokenizer.encode,
            "package, arrays": lambda text, package=package: package.encoded(package.tokenizer.encode(text), text),
        }
        times = best_us(calls, texts)
        found = {
            "tokens_mean": statistics.mean(ours.native.count(text) for text in texts),
            "us_p50": {name: statistics.median(values) for name, values in times.items()},
            "us_mean": {name: statistics.mean(values) for name, values in times.items()},
            "load_ms": {
                "native": load_ms(lambda source=source: Tokenizer(source, MAX_TOKENS)),
                "package": load_ms(lambda source=source: Package(source, MAX_TOKENS, "")),
            },
        }
        result[title] = found
        print(f"{title}, {found['tokens_mean']:.1f} tokens a message")
        for name in calls:
            print(f"  {name:16} p50 {found['us_p50'][name]:7.2f} us   mean {found['us_mean'][name]:7.2f} us")
        print(f"  load: native {found['load_ms']['native']:.1f} ms, package {found['load_ms']['package']:.1f} ms")
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
