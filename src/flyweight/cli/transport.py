"""pack, unpack: the transport form of a .fly file, for disks and networks. No PyTorch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from flyweight.cli import show
from flyweight.errors import ConfigError


def pack(
    fly: Annotated[Path, typer.Argument(help="A .fly file.")],
    out: Annotated[Path | None, typer.Option(help="Where to, *.fly.zst; by default beside it.")] = None,
    overwrite: show.Overwrite = False,
    as_json: show.Json = False,
) -> None:
    """Entropy-code a .fly file for disks and networks; every verb reads the result, decoding it once.

    [bold]Examples[/bold]

    flyweight pack bot.fly

    flyweight pack bot.fly --out release/bot.fly.zst --json
    """
    from flyweight.transport import SUFFIX
    from flyweight.transport import pack as pack_file

    packed = pack_file(fly, _free(out or fly.with_name(fly.name + SUFFIX), overwrite))
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
    overwrite: show.Overwrite = False,
) -> None:
    """Decode a transport form into the plain .fly file that is mapped into memory, and verify it.

    [bold]Examples[/bold]

    flyweight unpack bot.fly.zst

    flyweight unpack bot.fly.zst --out /srv/models/bot.fly
    """
    from flyweight.transport import unpack as unpack_file

    artifact = unpack_file(packed, _free(out or packed.with_suffix(""), overwrite))
    print(f"{artifact.path}: {artifact.size_bytes / 1e6:.2f} MB, {len(artifact.arrays)} tensors intact")


def _free(out: Path, overwrite: bool) -> Path:
    """The path, if nothing is there or it may be replaced."""
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; choose another --out, or add --overwrite")
    return out
