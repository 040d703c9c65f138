"""Compressed files: the same content comes back, a block at a time, and damage and bombs are refused with a reason."""

import errno
import gzip
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from random import Random

import pytest

from auditor.storage.compressed import MAX_EXPANSION, check_compressed, compress_file, expanded_blocks

RANDOM = Random(7)
CONTENTS = {
    "empty": b"",
    "a byte": b"x",
    "lines": b'{"account":"eu"}\n{"account":"us"}\n' * 100,
    "random": RANDOM.randbytes(3 << 20),
    "several blocks": b"".join(b"%d\n" % RANDOM.getrandbits(64) for _ in range(200_000)),
}


def content(path: Path) -> bytes:
    with path.open("rb") as file:
        return b"".join(expanded_blocks(file))


@pytest.mark.parametrize("name", CONTENTS)
def test_a_compressed_file_has_the_same_content_and_other_programs_read_it(tmp_path: Path, name: str) -> None:
    path, first, second = tmp_path / "plain", tmp_path / "first", tmp_path / "second"
    path.write_bytes(CONTENTS[name])
    assert compress_file(path, first)
    assert compress_file(path, second)
    assert content(first) == gzip.decompress(first.read_bytes()) == CONTENTS[name]
    assert first.read_bytes() == second.read_bytes()


def test_blocks_are_bounded_however_much_a_file_expands(tmp_path: Path) -> None:
    path = tmp_path / "lines.gz"
    plain = b"".join(b"%d" % RANDOM.getrandbits(64) * 40 + b"\n" for _ in range(8_000))
    path.write_bytes(gzip.compress(plain))
    with path.open("rb") as file:
        sizes = [len(block) for block in expanded_blocks(file)]
    assert sum(sizes) == len(plain)
    assert max(sizes) <= 1 << 20


def test_a_bomb_is_refused_before_it_has_expanded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20)))
    sizes: list[int] = []
    with path.open("rb") as file, pytest.raises(OSError, match="expands to more than 64 times its") as refused:
        sizes.extend(map(len, expanded_blocks(file)))
    assert refused.value.errno == errno.EFBIG
    assert sum(sizes) <= MAX_EXPANSION * path.stat().st_size


def test_lines_about_devices_with_many_equal_modules_are_no_bomb(tmp_path: Path) -> None:
    modules = ",".join(f'{{"module_name":"module{number}","module_version":"1.0.0"}}' for number in range(100))
    line = '{{"account":"eu","device_name":"device{:07}","modules":[{}],"request_id":"{:032X}"}}\n'
    lines = (line.format(number, modules, RANDOM.getrandbits(128)) for number in range(500))
    (tmp_path / "lines").write_text("".join(lines))
    assert compress_file(tmp_path / "lines", tmp_path / "lines.gz")
    assert (tmp_path / "lines").stat().st_size > 40 * (tmp_path / "lines.gz").stat().st_size
    check_compressed(tmp_path / "lines.gz")


def test_a_file_is_checked_once_while_it_is_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, read = tmp_path / "lines.gz", []

    def count(file: BufferedReader) -> Iterator[bytes]:
        read.append(file.name)
        return expanded_blocks(file)

    monkeypatch.setattr("auditor.storage.compressed.expanded_blocks", count)
    path.write_bytes(WHOLE)
    for _ in range(3):
        check_compressed(path)
    assert len(read) == 1
    path.write_bytes(WHOLE[:-1])
    for _ in range(2):
        with pytest.raises(OSError, match="is incomplete"):
            check_compressed(path)
    assert len(read) == 3


def test_what_would_be_refused_as_a_bomb_is_not_compressed(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(4 << 20))
    assert not compress_file(tmp_path / "zeros", tmp_path / "zeros.gz")


WHOLE = gzip.compress(b"".join(b"%d\n" % RANDOM.getrandbits(64) for _ in range(1_000)))
DAMAGED = {
    "nothing": b"",
    "no header": b"{}\n",
    "cut in the header": WHOLE[:6],
    "cut in the middle": WHOLE[: len(WHOLE) // 2],
    "without its check sum": WHOLE[:-8],
    "cut in the check sum": WHOLE[:-1],
    "other check sum": WHOLE[:-8] + bytes(4) + WHOLE[-4:],
    "other length": WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]),
    "a bit flipped": WHOLE[:900] + bytes([WHOLE[900] ^ 4]) + WHOLE[901:],
    "something behind it": WHOLE + b"x",
    "two members": WHOLE + WHOLE,
    "zlib": zlib.compress(b"x" * 100),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_an_error_with_a_reason(tmp_path: Path, name: str) -> None:
    path = tmp_path / "damaged.gz"
    path.write_bytes(DAMAGED[name])
    with pytest.raises(OSError, match=r"^\[Errno \d+\] is (damaged|incomplete): ") as refused:
        check_compressed(path)
    assert refused.value.errno == errno.EILSEQ
