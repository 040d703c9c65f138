"""Compressed files (gzip, RFC 1952): written and read a block at a time, and refused if they expand without bound."""

import errno
import gzip
import os
import zlib
from collections import deque
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from auditor.storage.files import create_own_file, open_regular_file

MAX_EXPANSION = 64
"""Bytes to which each byte of a compressed file may expand.

Lines about four modules give 7 to 12, lines about 100 equal modules 52, and a bomb 1,000. What would expand to more is
not compressed.
"""

MIN_EXPANDED_BYTES = 4 << 20
"""Bytes to which any compressed file of another program may expand: short ones may have the same text in each row."""

_GZIP = 31
"""Window size of zlib for one gzip member, whose check sum and length are verified."""

_LEVEL = 1
"""Level 6 takes almost three times as long (6.4 instead of 2.4 µs a device), and saves a fifth of the size."""

_BLOCK_BYTES = 1 << 20
"""Bytes that are compressed or expanded at a time."""


def compress_file(path: Path, compressed: Path) -> bool:
    """Write a compressed copy of a file; return whether it can be read back: it has the same content, and is no bomb.

    Equal files give equal copies. Raises OSError if a file cannot be read or written.
    """
    engine = zlib.compressobj(_LEVEL, wbits=_GZIP)
    with path.open("rb") as file, create_own_file(compressed) as new:
        while block := file.read(_BLOCK_BYTES):
            new.write(engine.compress(block))
        new.write(engine.flush())
        size = file.tell()
    if size > MAX_EXPANSION * compressed.stat().st_size:
        return False
    with path.open("rb") as file, compressed.open("rb") as copy:
        same = all(file.read(len(block)) == block for block in expanded_blocks(copy))
        return same and not file.read(1)


def expanded_blocks(file: BufferedReader) -> Iterator[bytes]:
    """Yield the content of an open compressed file in blocks of at most 1 MiB.

    Raises:
        OSError: it cannot be read; with ``EILSEQ``, it is damaged or incomplete; with ``EFBIG``, it would expand to
            more than ``MAX_EXPANSION`` times its size. ``strerror`` is a reason for people.
    """
    engine = zlib.decompressobj(wbits=_GZIP)
    size = os.fstat(file.fileno()).st_size
    expanded, rest = 0, b""
    while not engine.eof:
        if not rest and not (rest := file.read(_BLOCK_BYTES)):
            raise OSError(errno.EILSEQ, "is incomplete: its compressed data end too early")
        try:
            block = engine.decompress(rest, _BLOCK_BYTES)
        except zlib.error as error:
            raise OSError(errno.EILSEQ, "is damaged: its compressed data are not valid") from error
        rest = engine.unconsumed_tail
        expanded += len(block)
        if expanded > MAX_EXPANSION * size:
            excess = f"expands to more than {MAX_EXPANSION} times its {size:,} bytes; no audit writes such a file"
            raise OSError(errno.EFBIG, excess)
        yield block
    if engine.unused_data or file.read(1):
        raise OSError(errno.EILSEQ, "is damaged: something follows its compressed data")


def check_compressed(path: Path) -> None:
    """Read a compressed file to its end, following links; raise OSError as ``expanded_blocks``.

    The file that was checked last is not read again while it is unchanged: a query that needs more memory is repeated.
    """
    with open_regular_file(path) as file:
        status = os.fstat(file.fileno())
        identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        if identity not in _last_checked:
            for _ in expanded_blocks(file):
                pass
            _last_checked.append(identity)


_last_checked: deque[tuple[int, ...]] = deque(maxlen=1)


class BoundedGzip(gzip.GzipFile):
    """The content of an open file that any program compressed with gzip, in one member or in several.

    Reading a part raises OSError, EOFError or zlib.error where it is damaged, and OSError with ``EFBIG`` where it
    expands to more than ``MIN_EXPANDED_BYTES`` and to more than ``MAX_EXPANSION`` times its size.
    """

    def __init__(self, file: BufferedReader) -> None:
        super().__init__(fileobj=file, mode="rb")
        self._size = os.fstat(file.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Return at most ``size`` bytes."""
        return self._check(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        """Return at most ``size`` bytes, by one read of the file."""
        return self._check(super().read1(size))

    def _check(self, block: bytes) -> bytes:
        if self.tell() > max(MIN_EXPANDED_BYTES, MAX_EXPANSION * self._size):
            excess = f"expands to more than {MAX_EXPANSION} times its {self._size:,} bytes"
            raise OSError(errno.EFBIG, f"{excess}; if that is no mistake, decompress it first")
        return block
