"""pack, unpack: the transport form of a .fly file, for disks and networks. No PyTorch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flyweight.cli import show


def pack(
    fly: Annotated[Path, typer.Argument(help="A .fly file.")],
    out: Annotated[Path | None, typer.Option(help="Where to, *.fly.zst; by default beside it.")] = None,
    as_json: show.Json = False,
) -> None:
    """Entropy-code a .fly file for disks and networks; every verb reads the result, decoding it once.

    [bold]Examples[/bold]

    flyweight pack bot.fly

    flyweight pack bot.fly --out release/bot.fly.zst --json
    """
    from flyweight.transport import pack as pack_file

    packed = pack_file(fly, out)
    if as_json:
        show.print_json(asdict(packed) | {"path": str(packed.path)})
        return
    print(
        f"{packed.path}: {packed.plain_bytes / 1e6:.2f} MB -> {packed.packed_bytes / 1e6:.2f} MB, "
        f"{packed.plain_bytes / packed.packed_bytes:.2f} times smaller; bits a weight {packed.plain_bits:.2f} -> "
        f"{packed.packed_bits:.2f} (entropy {packed.entropy_bits:.2f})"
    )


def unpack(
    packed: Annotated[Path, typer.Argument(help="A transport form, *.fly.zst.")],
    out: Annotated[Path | None, typer.Option(help="Where to, *.fly; by default beside it.")] = None,
) -> None:
    """Decode a transport form into the plain .fly file that is mapped into memory, and verify it.

    [bold]Examples[/bold]

    flyweight unpack bot.fly.zst

    flyweight unpack bot.fly.zst --out /srv/models/bot.fly
    """
    from flyweight.transport import unpack as unpack_file

    artifact = unpack_file(packed, out)
    print(f"{artifact.path}: {artifact.size_bytes / 1e6:.2f} MB, {len(artifact.arrays)} tensors intact")
