"""What one attempt puts into the storage of its run, in the order that the rules of ``attempts`` need."""

import secrets
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

from auditor.cluster.attempts import (
    ATTEMPTS,
    BASE,
    DONE,
    MARKERS,
    SNAPSHOTS,
    STATE,
    AttemptName,
    AttemptObjects,
    Base,
    find_continued,
    find_done,
    next_name,
    owner,
    part_key,
    read_listing,
)
from auditor.cluster.records import MAX_RECORD_BYTES, decode_record
from auditor.errors import InvalidObjectError, ObjectStoreError, SupersededError
from auditor.storage.object_store import ObjectStore
from auditor.text.formatting import format_utc

COMPLETE = "run.json"
"""Object of a snapshot that is put last."""


class AttemptLog:
    """The objects of one attempt at a shard.

    All methods block, and raise ObjectStoreError if the storage cannot be used now. Each can be called again then, with
    the same arguments: what was put before is put again with the same content.

    Args:
        storage: that of the run.
        shard: folder of the shard, such as ``shards/0000-eu``.

    Attributes:
        name: name of the attempt; empty before ``begin``.
        base: what it continues.
    """

    def __init__(self, storage: ObjectStore, shard: str) -> None:
        self._storage, self._shard = storage, shard
        self._parts = self._snapshot = 0
        self.name = ""
        self.base = Base()

    def begin(self) -> None:
        """Take over the shard, and decide what counts of earlier attempts.

        Raises:
            SupersededError: another attempt started at the same time, and owns the shard.
            InvalidObjectError: a marker has the greatest name, or a base was not written by an attempt.
        """
        if not self.name:
            try:
                self.name = next_name(self._names(), secrets.token_hex(8))
            except ValueError as error:
                raise InvalidObjectError(f"{self._shard}/{MARKERS}: has a marker of {error}; delete it") from error
        self._storage.put(f"{self._shard}/{MARKERS}/{self.name}", format_utc(time.time()).encode())
        self.require_ownership()
        continued = find_continued(list_attempts(self._storage, self._shard), self.name)
        if continued is not None:
            self.base = read_base(self._storage, self._shard, continued)
        self._put(BASE, msgspec.json.encode(self.base))

    def require_ownership(self) -> None:
        """Raise SupersededError if another attempt owns the shard."""
        names = self._names()
        if self.name not in names:
            raise ObjectStoreError(f"{self._shard}: does not list what was put before")
        if (found := owner(names)) != self.name:
            raise SupersededError(f"{self._shard}: attempt {found} has taken over; this one ends, and is not retried")

    def append(self, content: bytes) -> None:
        """Store compressed lines as the next part. After an error, the next call must have the same content."""
        self._storage.put(self._key(part_key(self.name, self._parts + 1)), content)
        self._parts += 1

    def put_snapshot(self, files: Mapping[str, Path], record: bytes) -> None:
        """Store files, and last the ``record`` that belongs to them; until then, the snapshot before counts."""
        folder = f"{SNAPSHOTS}/{self._snapshot + 1:06d}"
        for name, path in files.items():
            self._storage.put_file(self._key(f"{self.name}/{folder}/{name}"), path)
        self._put(f"{folder}/{COMPLETE}", record)
        self._snapshot += 1

    def report(self, state: bytes) -> None:
        """Store the progress. Nothing is decided by it."""
        self._put(STATE, state)

    def finish(self, record: bytes) -> None:
        """Store the done marker, with a ``record`` of the run's end.

        Raises:
            SupersededError: another attempt owns the shard.
        """
        self.require_ownership()
        base = self.base.extended(self.name, self._parts, self._snapshot)
        self._put(DONE, msgspec.json.encode(DoneMarker(attempt=self.name, base=base, run=msgspec.Raw(record))))

    def _names(self) -> list[str]:
        folder = f"{self._shard}/{MARKERS}"
        return [each.key.removeprefix(f"{folder}/") for each in self._storage.list(folder)]

    def _put(self, name: str, content: bytes) -> None:
        self._storage.put(self._key(f"{self.name}/{name}"), content)

    def _key(self, name: str) -> str:
        return f"{self._shard}/{ATTEMPTS}/{name}"


class DoneMarker(msgspec.Struct, frozen=True, kw_only=True):
    """What counts of a shard that is done.

    Attributes:
        attempt: the attempt that ended it.
        base: its parts and files.
        run: the record of its end.
    """

    attempt: AttemptName
    base: Base
    run: msgspec.Raw


_BASE_DECODER, _DONE_MARKER_DECODER = msgspec.json.Decoder(Base), msgspec.json.Decoder(DoneMarker)


def list_attempts(storage: ObjectStore, shard: str) -> dict[str, AttemptObjects]:
    """Return the attempts at a shard by name."""
    folder = f"{shard}/{ATTEMPTS}"
    return read_listing(each.key.removeprefix(f"{folder}/") for each in storage.list(folder))


def read_base(storage: ObjectStore, shard: str, attempt: AttemptObjects) -> Base:
    """Return what the attempt that continues this one starts from."""
    content = storage.get(f"{shard}/{ATTEMPTS}/{attempt.name}/{BASE}", max_bytes=MAX_RECORD_BYTES)
    return decode_record(content, _BASE_DECODER, f"{shard}/{ATTEMPTS}/{attempt.name}/{BASE}").extended(
        attempt.name, attempt.parts, attempt.snapshot
    )


def read_done(storage: ObjectStore, shard: str, attempts: Mapping[str, AttemptObjects]) -> DoneMarker | None:
    """Return what counts of a shard; None: it is not done."""
    if (name := find_done(attempts)) is None:
        return None
    place = f"{shard}/{ATTEMPTS}/{name}/{DONE}"
    return decode_record(storage.get(place, max_bytes=MAX_RECORD_BYTES), _DONE_MARKER_DECODER, place)
