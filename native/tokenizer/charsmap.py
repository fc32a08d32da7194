"""Make a charsmap: the table of SentencePiece's normalizer ("precompiled_charsmap") from text -> replacement.

    4 bytes   size of the double array, little endian
    units     uint32 each; the first is the root, whose offset leads to its children
    pool      the replacements in UTF-8, each with a 0 behind it

A unit says (Darts-clone): bits 0-7 its label, bit 8 whether a key ends here, bits 10-30 the offset (bit 9: in units of
256). The child of the unit at p by the byte b lies at p ^ offset ^ b; the value of a key that ends at p, its
replacement's place in the pool, at p ^ offset, with bit 31. For probes and tests: small tables, slowly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

VALUE = 1 << 31
BLOCK = 256


def charsmap(rules: Mapping[str, str]) -> bytes:
    """The bytes of a charsmap. Keys and replacements have no U+0000; a key is not empty."""
    pool = b""
    root: dict[Any, Any] = {}
    for key, replacement in rules.items():
        node = root
        for byte in key.encode():
            node = node.setdefault(byte, {})
        node[None] = len(pool)
        pool += replacement.encode() + b"\0"
    units = b"".join(unit.to_bytes(4, "little") for unit in double_array(root))
    return len(units).to_bytes(4, "little") + units + pool


def double_array(root: dict[Any, Any]) -> list[int]:
    """The units of a trie: byte -> node, None -> value."""
    units: dict[int, int] = {0: 0}
    waiting = [(root, 0)]
    lowest = 1  # below it all places are taken
    while waiting:
        node, place = waiting.pop()
        if not node:
            continue
        labels = [0 if byte is None else byte for byte in node]
        first = lowest
        while any((first ^ labels[0] ^ label) in units for label in labels):
            first += 1
        offset = place ^ first ^ labels[0]
        units[place] |= _offset_bits(offset) | (None in node) << 8
        for byte, label in zip(node, labels, strict=True):
            child = place ^ offset ^ label
            if byte is None:
                units[child] = VALUE | node[None]
            else:
                units[child] = label
                waiting.append((node[byte], child))
        while lowest in units:
            lowest += 1
    size = -(-(max(units) + 1) // BLOCK) * BLOCK
    return [units.get(place, 0) for place in range(size)]


def _offset_bits(offset: int) -> int:
    if offset < 1 << 21:
        return offset << 10
    if offset % BLOCK:
        raise ValueError(f"a table too large for an offset of {offset}")
    return offset // BLOCK << 10 | 1 << 9
