"""A .fly file taken apart and put together again, whatever is in it: what damaged files are made with."""

from __future__ import annotations

import json
from typing import Any

from flyweight.artifact import ALIGN, manifest_sha256


def parts(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header without metadata, manifest, tensor bytes."""
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    manifest = json.loads(header.pop("__metadata__")["flyweight"])
    return header, manifest, data[8 + n :]


def assemble(header: Any, manifest: Any, tensors: bytes, metadata: Any = None, pad: bool = True) -> bytes:
    """The inverse of `parts`: a file around any header and manifest, whose SHA-256 fits."""
    if isinstance(header, dict):
        text = json.dumps(manifest)
        header = {"__metadata__": metadata or {"flyweight": text, "manifest_sha256": manifest_sha256(text)}, **header}
    head = json.dumps(header).encode()
    if pad:
        head += b" " * (-(8 + len(head)) % ALIGN)
    return len(head).to_bytes(8, "little") + head + tensors


def nodes(tree: Any, limit: int = 10**9) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside a JSON tree, of the first `limit` things of each container."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [place for key, value in list(items)[:limit] for place in ((tree, key), *nodes(value, limit))]
