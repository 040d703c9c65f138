"""What a storage has of a shard: compressed lines, and records about its run."""

import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import msgspec

from auditor.cluster.attempts import ATTEMPTS, Base
from auditor.errors import ExitReasonCode, InvalidObjectError
from auditor.fleet.table import sha256_of
from auditor.runs.folder import CARRIED, CONNECTIONS, FLEET, PRODUCTS, SELECTED
from auditor.runs.manifest import Manifest
from auditor.storage.json_types import Timestamp
from auditor.storage.object_store import MAX_FILE_BYTES, ObjectStore
from auditor.text.formatting import format_utc

T = TypeVar("T")

MAX_RECORD_BYTES = 32 << 20
"""Size up to which a record is read; it contains a manifest."""

MAX_COMPRESSED_BYTES = MAX_PART_BYTES = 64 << 20
"""Size up to which a part is read, and to which it may expand: a line is never cut."""

SNAPSHOT_FILES = (FLEET, PRODUCTS, SELECTED, CARRIED, CONNECTIONS)
"""Files of a run folder that a snapshot may have."""

FAILED = b'"status":"failed"'
"""Only the line of a failed device contains this: a quote in a name is escaped."""

_GZIP, _LEVEL = 31, 1


class ShardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a storage has about the run of a shard besides its lines.

    Attributes:
        manifest: its manifest, without settings.
        reported_at: when it was written, by the clock of the worker.
        files: names of the files of a snapshot.
        reason: why its last session ended without a result, as a code; null: it did not.
    """

    manifest: Manifest
    reported_at: Timestamp
    files: tuple[str, ...] = ()
    reason: ExitReasonCode | None = None


SHARD_RECORD_DECODER = msgspec.json.Decoder(ShardRecord)
"""Decodes the records about shards; see ``decode_record``."""


def compress_lines(lines: bytes) -> bytes:
    """Return lines as the content of a part."""
    engine = zlib.compressobj(_LEVEL, wbits=_GZIP)
    return engine.compress(lines) + engine.flush()


def expand_lines(content: bytes, where: str) -> bytes:
    """Return the lines of a part; raise InvalidObjectError if it is damaged, or expands to more than any part has."""
    engine = zlib.decompressobj(wbits=_GZIP)
    try:
        lines = engine.decompress(content, MAX_PART_BYTES)
    except zlib.error as error:
        raise InvalidObjectError(f"{where}: is damaged: {error}") from error
    if not engine.eof or engine.unused_data or (lines and not lines.endswith(b"\n")):
        raise InvalidObjectError(f"{where}: is damaged, or no attempt has written it")
    return lines


def encode_record(manifest: Manifest, files: tuple[str, ...] = ()) -> bytes:
    """Return a record about a shard. Settings and errors may name keys, commands and files of the worker: they stay.

    Of an error, its code is kept.
    """
    reason = manifest.exit_reason.code if manifest.exit_code and manifest.exit_reason is not None else None
    own = replace(
        manifest, settings=None, settings_sha256=None, settings_file=None, error=None, exit_code=None, exit_reason=None
    )
    return msgspec.json.encode(
        ShardRecord(manifest=own, reported_at=format_utc(time.time()), files=files, reason=reason)
    )


def decode_record(content: bytes, decoder: msgspec.json.Decoder[T], where: str) -> T:
    """Return a record of a storage; raise InvalidObjectError if it is none.

    A decoder is made while a module is imported: msgspec crashes if two threads decode a type for the first time.
    """
    try:
        return decoder.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidObjectError(f"{where}: was not written by an attempt: {error}") from error


def get_fleet(storage: ObjectStore, key: str, path: Path, sha256: str | None, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write a fleet of the storage to a file; raise InvalidObjectError if it has another digest than was recorded."""
    storage.get_file(key, path, max_bytes=max_bytes)
    if sha256 is not None and sha256_of(path) != sha256:
        raise InvalidObjectError(
            f"{storage.address}/{key}: is damaged: it is not the fleet of the run (its digest differs)"
        )


def part_lines(storage: ObjectStore, folder: str, base: Base) -> Iterator[tuple[str, bytes]]:
    """Yield the attempt and the lines of each part that counts, of the shard in a folder, in their order."""
    for key in base.part_keys():
        place = f"{folder}/{ATTEMPTS}/{key}"
        content = storage.get(place, max_bytes=MAX_COMPRESSED_BYTES)
        yield key.partition("/")[0], expand_lines(content, place)


def split_failed(lines: bytes) -> tuple[bytes, bytes]:
    """Return the lines of answers, and those of failed devices."""
    if FAILED not in lines:
        return lines, b""
    split = lines.splitlines(keepends=True)
    return b"".join(line for line in split if FAILED not in line), b"".join(line for line in split if FAILED in line)
