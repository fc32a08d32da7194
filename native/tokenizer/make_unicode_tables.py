"""Write unicode_tables.h: what the `tokenizers` package does with every code point, by asking it.

The Rust crates behind `tokenizers` carry Unicode versions of their own, each another one. So the tables are not taken
from a Unicode release but probed: every code point goes through BertNormalizer (each option alone), NFD,
BertPreTokenizer, ByteLevel, an added token, the pattern of word units and Precompiled, and what comes out is written
down. Run from the root of the project:

    python native/tokenizer/make_unicode_tables.py            # writes native/tokenizer/unicode_tables.h
    python native/tokenizer/make_unicode_tables.py --check    # exit code 1 if the file would change

Layout: `class_of(c) = kBlocks[kBlockOf[c >> 7]][c & 127]` indexes kClasses, the distinct (flags, combining class,
flags of grapheme clusters). Lower case and canonical decomposition are sorted lists, searched only where a flag says
that there is an entry; Hangul decomposes by arithmetic.
"""

from __future__ import annotations

import sys
import unicodedata
from itertools import pairwise
from pathlib import Path

import tokenizers
from charsmap import charsmap  # beside this file
from tokenizers import AddedToken, Tokenizer, models
from tokenizers.normalizers import NFD, BertNormalizer, Precompiled
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel

from flyweight.tokenizer.package import unit_splitter

HEADER = Path(__file__).with_name("unicode_tables.h")
CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
BLOCK = 128
HANGUL = range(0xAC00, 0xD7A4)

FLAGS = {  # name: what sets it
    "kControl": "clean_text removes it",
    "kCjk": "handle_chinese_chars puts spaces round it",
    "kMark": "strip_accents removes it (nonspacing mark)",
    "kPunctuation": "BertPreTokenizer makes it a word of its own",
    "kSpace": "white space: of BertPreTokenizer, ByteLevel, lstrip and rstrip",
    "kLetter": "\\p{L} of ByteLevel's pattern",
    "kNumber": "\\p{N} of ByteLevel's pattern",
    "kWord": "\\w at the edge of a single_word token",
    "kHasLower": "kLower has an entry",
    "kHasNfd": "kNfd has an entry, or it is a Hangul syllable",
    "kUnitLetter": "a letter or number: in one unit of words with those round it",
    "kUnitMark": "a mark or joiner: in the unit of what is in front of it",
}
CLUSTER_FLAGS = {  # of grapheme clusters, UAX 29; what Precompiled treats as one, up to 5 bytes
    "kBreaks": "Control, CR, LF: a cluster of its own",
    "kAttaches": "Extend, SpacingMark, ZWJ: in the cluster of what is in front of it",
    "kExtends": "Extend: may stand between Extended_Pictographic and ZWJ",
    "kPrepends": "Prepend: in the cluster of what is behind it",
    "kPictographic": "Extended_Pictographic: goes on behind another one and ZWJ",
    "kConsonant": "Indic_Conjunct_Break = Consonant: goes on behind another one and a linker",
    "kLinker": "Indic_Conjunct_Break = Linker",
    "kConjunct": "Indic_Conjunct_Break = Extend: may stand between the two",
    "kHangulL": "leading consonant of Hangul",
    "kHangulV": "vowel of Hangul",
    "kHangulT": "trailing consonant of Hangul; syllables are found by arithmetic",
}
BIT = {name: 1 << i for flags in (FLAGS, CLUSTER_FLAGS) for i, name in enumerate(flags)}
Kind = tuple[int, int, int]  # flags, combining class, flags of clusters
NOTHING: Kind = (0, 0, 0)


def bert(**on: bool) -> BertNormalizer:
    """A BertNormalizer with only the options in `on`."""
    off = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
    return BertNormalizer(**(off | on))


def normalized(normalizer: object) -> dict[int, str]:
    """What becomes of each code point alone."""
    return {c: normalizer.normalize_str(chr(c)) for c in CODE_POINTS}  # type: ignore[attr-defined]


def byte_level_class() -> dict[int, str]:
    """kLetter, kNumber, kSpace or "" for each code point: which run of ByteLevel's pattern it joins."""
    split = ByteLevel(add_prefix_space=False).pre_tokenize_str
    found = {}
    for c in CODE_POINTS:
        joins = [
            name for name, before in (("kLetter", "a"), ("kNumber", "1"), ("", "!")) if len(split(before + chr(c))) == 1
        ]
        assert len(joins) <= 1, hex(c)
        found[c] = joins[0] if joins else "kSpace"
    return found


def edge_flags() -> tuple[set[int], set[int]]:
    """(the word characters, the white space) of added tokens with single_word and with lstrip."""
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]", max_input_chars_per_word=1))
    tokenizer.add_special_tokens([AddedToken("<word>", single_word=True), AddedToken("<strip>", lstrip=True)])
    word, space = set(), set()
    for a in range(0, len(CODE_POINTS), 4096):
        chunk = CODE_POINTS[a : a + 4096]
        for c, e in zip(chunk, tokenizer.encode_batch([chr(c) + "<word>" for c in chunk]), strict=True):
            if e.ids != [0, 1]:
                word.add(c)
        for c, e in zip(chunk, tokenizer.encode_batch([chr(c) + "<strip>" for c in chunk]), strict=True):
            if e.offsets[-1][0] == 0:
                space.add(c)
    return word, space


def combining_classes(nfd: dict[int, str]) -> dict[int, int]:
    """The canonical combining class of every code point that NFD reorders.

    x + y is swapped exactly when 0 < ccc(y) < ccc(x). One known mark of every class is the scale to measure on; a code
    point of a class between two marks of the scale would fit none, and the unpacking below would fail.
    """
    order = NFD().normalize_str
    first, last = "\u0334", "\u0345"  # classes 1 and 240: the ends of the scale

    def swaps(x: str, y: str) -> bool:
        return order("a" + x + y) == "a" + y + x != "a" + x + y

    scale: dict[int, str] = {unicodedata.combining(first): first, unicodedata.combining(last): last}
    for c in CODE_POINTS:
        value = unicodedata.combining(chr(c))
        if value and nfd[c] == chr(c) and swaps(chr(c), first) and swaps(last, chr(c)):
            scale.setdefault(value, chr(c))
    values = sorted(scale)
    assert values[0] == 1
    assert values[-1] == 240
    for low, high in pairwise(values):
        assert swaps(scale[high], scale[low]), (low, high)
    found = {}
    for c in CODE_POINTS:
        x = chr(c)
        if nfd[c] != x:
            continue
        if not swaps(x, first) and not swaps(last, x):
            continue
        below = [v for v in values if swaps(x, scale[v])]
        above = [v for v in values if swaps(scale[v], x)]
        [found[c]] = set(values) - set(below) - set(above)
    return found


def unit_flags() -> tuple[set[int], set[int]]:
    """(letters, marks) of word units, see flyweight.tokenizer.package.metaspace_words."""
    split = unit_splitter().pre_tokenize_str
    marks = {c for c in CODE_POINTS if len(split(f"!{chr(c)}")) == 1}
    return {c for c in CODE_POINTS if c not in marks and len(split(f"a{chr(c)}")) == 1}, marks


# What shows whether `before` and `x` are one cluster: x + U+0301 are at most 5 bytes, and Precompiled replaces such a
# cluster whole, by what its first character becomes; so the mark is gone. In a longer one it stays.
PROBES = "a\u0937\xa9\u1100\u1161\u11a8"  # a letter, a consonant of Devanagari, a pictographic one, Hangul L, V, T
OTHERS = "b\u0938\xae\u1101\u1162\u11a9"  # the same for the probes themselves
MARK = "\u0301"


def cluster_flags() -> dict[int, int]:
    """The flags of grapheme clusters of each code point."""
    maps = [Precompiled(charsmap(dict.fromkeys([*letters, "\u0302"], "?"))) for letters in (PROBES, OTHERS)]
    hangul = {"kHangulL": (True, True, False), "kHangulV": (False, True, True), "kHangulT": (False, False, True)}
    found = {}

    def joined(table: Precompiled, before: str, x: str) -> bool:
        return MARK in table.normalize_str(before + x + MARK)

    for c in CODE_POINTS:
        x, table = chr(c), maps[chr(c) in PROBES]
        a, consonant, pictographic, *lvt = OTHERS if x in PROBES else PROBES
        attaches = table.normalize_str(a + x) == "?"
        prepends = joined(table, x, a)
        names = {
            "kBreaks": not joined(table, x, "\u0302"),  # then U+0302 U+0301 are a cluster
            "kAttaches": attaches,
            "kExtends": attaches and joined(table, f"\U0001f600{x}\u200d", pictographic),
            "kPrepends": prepends,
            "kPictographic": joined(table, f"{x}\u200d", pictographic),
            "kConsonant": joined(table, f"{x}\u094d", consonant),
            "kLinker": attaches and joined(table, f"\u0915{x}", consonant),
            "kConjunct": attaches and joined(table, f"\u0915{x}\u094d", consonant),
        }
        followed = tuple(joined(table, x, y) for y in lvt)  # by L, V, T
        names |= {name: c not in HANGUL and followed == by for name, by in hangul.items()}
        if c in HANGUL:
            assert followed == (False, (c - HANGUL[0]) % 28 == 0, True), hex(c)
        elif any(followed) and not prepends and x != MARK:
            assert followed in hangul.values(), hex(c)
        found[c] = sum(BIT[name] for name, is_set in names.items() if is_set)
    found[ord(MARK)] = found[0x300]  # with the mark itself in front there is always one
    return found


def probe() -> tuple[dict[int, Kind], dict[int, str], dict[int, str]]:
    """(flags and combining class, lower case, decomposition) of all code points, defaults left out."""
    clean = normalized(bert(clean_text=True))
    cjk = normalized(bert(handle_chinese_chars=True))
    stripped = normalized(bert(strip_accents=True))
    lower = {c: s for c, s in normalized(bert(lowercase=True)).items() if s != chr(c)}
    nfd = normalized(NFD())
    split = BertPreTokenizer().pre_tokenize_str
    pieces = {c: len(split(f"a{chr(c)}b")) for c in CODE_POINTS}
    runs = byte_level_class()
    word, space = edge_flags()
    ccc = combining_classes(nfd)
    unit_letters, unit_marks = unit_flags()
    clusters = cluster_flags()

    kinds: dict[int, Kind] = {}
    for c in CODE_POINTS:
        is_space = pieces[c] == 2
        assert is_space == (runs[c] == "kSpace") == (c in space), hex(c)
        assert (clean[c] == " ") == (is_space and clean[c] != ""), hex(c)
        assert clean[c] in ("", " ", chr(c)), hex(c)
        assert cjk[c] in (chr(c), f" {chr(c)} "), hex(c)
        names = {
            "kControl": clean[c] == "",
            "kCjk": cjk[c] != chr(c),
            "kMark": stripped[c] == "" and nfd[c] == chr(c),
            "kPunctuation": pieces[c] == 3,
            "kSpace": is_space,
            "kLetter": runs[c] == "kLetter",
            "kNumber": runs[c] == "kNumber",
            "kWord": c in word,
            "kHasLower": c in lower,
            "kHasNfd": nfd[c] != chr(c),
            "kUnitLetter": c in unit_letters,
            "kUnitMark": c in unit_marks,
        }
        value = sum(BIT[name] for name, is_set in names.items() if is_set), ccc.get(c, 0), clusters[c]
        if value != NOTHING:
            kinds[c] = value
    for c in CODE_POINTS:  # the flags explain strip_accents wholly
        kept = "".join(x for x in nfd[c] if not kinds.get(ord(x), NOTHING)[0] & BIT["kMark"])
        assert stripped[c] == kept, hex(c)
    for c in HANGUL:
        i = c - 0xAC00
        parts = [0x1100 + i // 588, 0x1161 + i % 588 // 28, *([0x11A7 + i % 28] if i % 28 else [])]
        assert nfd[c] == "".join(map(chr, parts)), hex(c)
    decomposed = {c: s for c, s in nfd.items() if s != chr(c) and c not in HANGUL}
    return kinds, lower, decomposed


def array(kind: str, name: str, values: list[str]) -> str:
    """A C array, lines at most 118 characters."""
    lines, line = [], " "
    for value in values:
        if len(line) + len(value) + 2 > 118:
            lines.append(line)
            line = " "
        line += f" {value},"
    return "\n".join([f"inline constexpr {kind} {name}[] = {{", *lines, line, "};", ""])


def mapping(name: str, table: dict[int, str]) -> str:
    """Sorted code points, where each one's replacement begins in the pool, and the pool."""
    starts, pool = [0], ""
    for c in sorted(table):
        pool += table[c]
        starts.append(len(pool))
    return (
        array("std::uint32_t", f"{name}From", [f"{c:#x}" for c in sorted(table)])
        + array("std::uint16_t", f"{name}Start", [str(s) for s in starts])
        + array("std::uint32_t", f"{name}Pool", [f"{ord(x):#x}" for x in pool])
    )


def header() -> str:
    """The text of unicode_tables.h."""
    kinds, lower, decomposed = probe()
    classes = sorted(set(kinds.values()) | {NOTHING})
    assert len(classes) <= 256
    number = {value: i for i, value in enumerate(classes)}
    blocks: dict[tuple[int, ...], int] = {}
    block_of = []
    for a in range(0, 0x110000, BLOCK):
        block = tuple(number[kinds.get(c, NOTHING)] for c in range(a, a + BLOCK))
        block_of.append(blocks.setdefault(block, len(blocks)))
    flags = "\n\n".join(
        "\n".join(f"inline constexpr std::uint16_t {n} = {BIT[n]};  // {why}" for n, why in names.items())
        for names in (FLAGS, CLUSTER_FLAGS)
    )
    return "".join(
        [
            f"// Generated by make_unicode_tables.py from tokenizers {tokenizers.__version__}; do not edit.\n",
            "#pragma once\n\n#include <cstdint>\n\nnamespace flyweight::unicode {\n\n",
            flags,
            "\n\nstruct Class {\n  std::uint16_t flags;\n  std::uint8_t ccc;  // canonical combining class\n",
            "  std::uint16_t cluster;\n};\n\n",
            array("Class", "kClasses", [f"{{{f}, {ccc}, {cluster}}}" for f, ccc, cluster in classes]),
            array("std::uint8_t" if len(blocks) <= 256 else "std::uint16_t", "kBlockOf", [str(b) for b in block_of]),
            array("std::uint8_t", "kBlocks", [str(x) for block in blocks for x in block]),
            mapping("kLower", lower),
            mapping("kNfd", decomposed),
            "\n}  // namespace flyweight::unicode\n",
        ]
    )


def main() -> int:
    """Write the header, or with --check compare it."""
    text = header()
    if sys.argv[1:] == ["--check"]:
        return int(HEADER.read_text(encoding="utf-8") != text)
    HEADER.write_text(text, encoding="utf-8")
    print(f"{HEADER}: {len(text)} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
