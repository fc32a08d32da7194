"""The transport form: the same bytes come back, damage is refused in one line, entropy by hand."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zstandard
from cli_cases import Call

import flyweight as fw
from flyweight import artifact, transport
from flyweight.errors import ArtifactError, FlyweightError, MissingExtraError
from flyweight.forms import Float32, Sparse
from flyweight.forms.codes import Codes
from flyweight.forms.int8 import Int8


@pytest.fixture
def packed(bot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> transport.Packed:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return transport.pack(bot, tmp_path / "bot.fly.zst")


def test_the_same_bytes_come_back(bot: Path, packed: transport.Packed) -> None:
    artifact = transport.unpack(packed.path)
    assert artifact.path == packed.path.with_suffix("")
    assert artifact.path.read_bytes() == bot.read_bytes()
    assert packed.packed_bytes == packed.path.stat().st_size < packed.plain_bytes == bot.stat().st_size


def test_any_zstd_decoder_reads_it(bot: Path, packed: transport.Packed) -> None:
    assert zstandard.ZstdDecompressor().decompress(packed.path.read_bytes()) == bot.read_bytes()


def test_bits_lie_between_the_entropy_and_the_plain_file(packed: transport.Packed) -> None:
    assert 0 < packed.entropy_bits < packed.plain_bits
    assert packed.packed_bits < packed.plain_bits
    assert packed.n_weights > 100_000


def test_load_decodes_once_and_answers_the_same(bot: Path, packed: transport.Packed) -> None:
    text = "book a flight to Rome"
    first = fw.load(packed.path)
    plain = first.artifact.path
    written = plain.stat().st_mtime_ns
    assert plain.parent == transport.cache_folder()
    again = fw.load(packed.path)
    assert again.artifact.path == plain
    assert plain.stat().st_mtime_ns == written
    assert again.parse(text) == fw.load(bot).parse(text)


def test_the_cache_tells_files_apart(packed: transport.Packed, tmp_path: Path) -> None:
    other = tmp_path / "other.fly.zst"
    coder = zstandard.ZstdCompressor(level=1)
    other.write_bytes(coder.compress(transport.unpack(packed.path).path.read_bytes()))
    assert transport.unpacked(other) != transport.unpacked(packed.path)


def without_size(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(zstandard.decompress(content))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda content: content[:-50], "is no transport form, or damaged"),
        (flipped, "is no transport form, or damaged"),
        (lambda content: content + b"tail", "is no transport form, or damaged"),
        (lambda content: b"PK\3\4" + content, "is no transport form, or damaged"),
        (lambda content: b"", "is no transport form, or damaged"),
        (without_size, "does not say how large the plain file is"),
        (
            lambda content: zstandard.compress(b"no fly file" * 20),
            r"bad\.fly\.zst holds no sound .fly file: what is in it: header",
        ),
        (lambda content: zstandard.compress(bytes(1 << 26)), "no .fly file is 1000 times larger"),
    ],
)
def test_damage_is_refused_and_nothing_stays(packed: transport.Packed, damage: object, said: str) -> None:
    folder = packed.path.parent
    bad = folder / "bad.fly.zst"
    bad.write_bytes(damage(packed.path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=said) as error:
        fw.load(bad)
    assert "\n" not in str(error.value)
    with pytest.raises(ArtifactError, match=said):
        transport.unpack(bad)
    assert sorted(p.name for p in folder.iterdir() if p.is_file()) == ["bad.fly.zst", "bot.fly.zst"]
    assert not list(transport.cache_folder().glob("*"))


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-1], lambda content: b""])
def test_a_damaged_file_in_the_cache_is_decoded_again(bot: Path, packed: transport.Packed, damage: object) -> None:
    plain = transport.unpacked(packed.path)
    plain.write_bytes(damage(bot.read_bytes()))  # type: ignore[operator]
    assert transport.unpacked(packed.path) == plain
    assert plain.read_bytes() == bot.read_bytes()


def test_threads_may_decode_at_once(bot: Path, packed: transport.Packed) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(transport.unpacked, [packed.path] * 24))
    assert [path.read_bytes() == bot.read_bytes() for path in found] == [True]
    assert len(list(transport.cache_folder().iterdir())) == 1


def test_a_relative_cache_folder_does_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert transport.cache_folder() == tmp_path / ".cache" / "flyweight" / "unpacked"


def test_links_with_the_name_of_a_temporary_file_are_not_followed(
    bot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact.secrets, "token_hex", lambda n: "name")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / ".bot.fly.zst.name.part").symlink_to(victim)
    with pytest.raises(FileExistsError):
        transport.pack(bot, tmp_path / "bot.fly.zst")
    assert victim.read_text() == "mine"


def test_names(bot: Path, packed: transport.Packed, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"must end in \.zst"):
        transport.pack(bot, tmp_path / "bot.zip")
    with pytest.raises(ArtifactError, match=r"must end in \.fly"):
        transport.unpack(packed.path, tmp_path / "bot.bin")
    with pytest.raises(ArtifactError, match="does not exist"):
        transport.unpack(tmp_path / "nobody.fly.zst")
    with pytest.raises(ArtifactError, match="does not exist"):
        fw.load(tmp_path / "nobody.fly.zst")


def test_a_damaged_file_is_not_packed(bot: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.fly"
    content = bytearray(bot.read_bytes())
    content[-200_000] ^= 1
    bad.write_bytes(content)
    with pytest.raises(FlyweightError, match="SHA-256"):
        transport.pack(bad)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.fly"]


def test_without_the_package_one_line_says_what_to_install(bot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'flyweight\[transport\]'"):
        transport.pack(bot)


def test_plain_files_are_loaded_without_it(bot: Path) -> None:
    code = "import sys, flyweight as fw; fw.load(sys.argv[1]).parse('hello'); sys.exit('zstandard' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, str(bot)], check=False).returncode == 0


def test_entropy_by_hand() -> None:
    assert transport.entropy(np.array([0.5, 0.25, 0.25])) == 1.5
    assert transport.entropy(np.array([1.0, 0.0])) == 0.0
    four = np.array([[0, 1, 2, 3], [0, 1, 2, 3]], np.uint8)
    assert transport.entropy_bits(Codes(four, np.zeros((1, 4), np.float32))) == 2.0
    q = np.array([[5, 5, 5, -5]], np.int8)
    assert transport.entropy_bits(Int8(q, np.ones(1, np.float32))) == pytest.approx(0.811278, abs=1e-6)
    assert transport.entropy_bits(Float32(np.zeros((2, 2), np.float32))) == 32.0
    assert transport.entropy_bits(Int8(np.zeros((0, 4), np.int8), np.ones(0, np.float32))) == 0.0


def test_entropy_of_a_sparse_matrix_counts_the_mask() -> None:
    mask = np.array([[True, False, False, True], [False, True, True, False]])
    q = np.array([[1, 0, 0, 2], [0, 1, 2, 0]], np.int8)
    # H(1/2) = 1 for the mask, and half of the weights survive with H = 1.
    assert transport.entropy_bits(Sparse(Int8(q, np.ones(2, np.float32)), mask)) == 1.5
    # In blocks of four one bit stands for four weights: 1 / 4, and half of the weights have two bits.
    blocks = np.array([[True] * 4 + [False] * 4])
    q = np.array([[1, 2, 3, 4, 0, 0, 0, 0]], np.int8)
    assert transport.entropy_bits(Sparse(Int8(q, np.ones(1, np.float32)), blocks)) == 1.25


def test_pack_unpack_and_parse_by_the_command_line(
    bot: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = tmp_path / "bot.fly.zst"
    done = call("pack", bot, "--out", packed)
    assert done.code == 0
    assert "times smaller; bits a weight" in done.out
    assert call("parse", packed, "hello").out == call("parse", bot, "hello").out
    assert call("verify", packed).code == 0
    done = call("unpack", packed)
    assert (done.code, (tmp_path / "bot.fly").read_bytes()) == (0, bot.read_bytes())
    for again in (("unpack", packed), ("pack", bot, "--out", packed)):
        done = call(*again)
        assert (done.code, done.err.count("\n")) == (1, 1)
        assert "--overwrite" in done.err
        assert call(*again, "--overwrite").code == 0
    packed.write_bytes(b"rubbish")
    done = call("unpack", packed, "--overwrite")
    assert done.code == 1
    assert done.err.count("\n") == 1
    assert (tmp_path / "bot.fly").read_bytes() == bot.read_bytes()
