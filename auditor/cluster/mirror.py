"""Ships what an audit session appends to its run folder in local scratch, and what it knows of its fleet.

The session does not know of it. At each checkpoint, the lines that were appended since the last one become a part. A
fleet that the platform lists, the products of a fleet, and a selection of its devices become a snapshot before a part
has lines about them.
"""

import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio

from auditor.cluster.attempt_log import AttemptLog
from auditor.cluster.records import SNAPSHOT_FILES, compress_lines, encode_record
from auditor.concurrency import StopToken, run_in_thread
from auditor.errors import InvalidObjectError, ObjectStoreError, SupersededError
from auditor.fleet.table import sha256_of
from auditor.log import log
from auditor.runs.folder import FAILURES, FLEET, RESULTS
from auditor.runs.manifest import Manifest, read_manifest

T = TypeVar("T")

PART_BYTES = 8 << 20
"""Bytes of lines in a part, before compression; more become further parts."""

PAUSE_SECONDS, GIVE_UP_SECONDS = 300.0, 3_600.0
"""Seconds without a checkpoint after which no more devices are queried, and after which the process ends."""


class Mirror:
    """Ships the run folder of one attempt.

    Args:
        folder: the run folder.
        attempts: takes what is shipped.
        work: an empty folder for copies.
        grows: whether the platform lists the fleet.

    Attributes:
        superseded: set once another attempt owns the shard.
        paused: whether the session was stopped because the storage is away.
    """

    def __init__(self, folder: Path, attempts: AttemptLog, work: Path, *, grows: bool) -> None:
        self._folder, self._log, self._work, self._grows = folder, attempts, work, grows
        # What is there was restored from the storage; failures of earlier attempts are queried again.
        self._shipped = {RESULTS: (folder / RESULTS).stat().st_size, FAILURES: 0}
        self._pending: tuple[bytes, dict[str, int]] | None = None
        self._snapshot: object = None
        self.superseded: SupersededError | None = None
        self.paused = False

    async def keep_shipping(self, seconds: float, stop: StopToken) -> None:
        """Make a checkpoint at an interval; request the end of the session if the shard or the storage is lost."""
        failing_since: float | None = None
        while True:
            await anyio.sleep(seconds)
            try:
                await run_in_thread(self.checkpoint)
                failing_since = None
            except SupersededError as error:
                self.superseded = error
                stop.request(str(error), drain_seconds=0)
                return
            except ObjectStoreError as error:
                now = time.monotonic()
                failing_since = now if failing_since is None else failing_since
                log.warning("checkpoint_failed", reason=str(error))
                if now - failing_since >= PAUSE_SECONDS:
                    self.paused = True
                    stop.request("the storage is away")
                    return

    def checkpoint(self) -> None:
        """Ship everything that was written until now, then report the progress.

        Raises:
            SupersededError: another attempt owns the shard.
            ObjectStoreError: the storage cannot be used now; the next checkpoint ships the rest.
        """
        self._log.require_ownership()
        while self._pending is not None or self._collect():
            if self._pending is not None:
                content, shipped = self._pending
                self._log.append(content)
                self._shipped, self._pending = shipped, None
        self._log.report(encode_record(read_manifest(self._folder)))

    def finish(self, manifest: Manifest) -> None:
        """Ship the rest, and store the done marker."""
        self.checkpoint()
        self._put_snapshot(manifest)
        self._log.finish(encode_record(manifest))

    def _collect(self) -> bool:
        """Make a part of the lines that were appended; return whether there are any.

        The lines are read before the manifest: so the fleet of a snapshot has all devices of the lines.
        """
        lines, shipped = b"", dict(self._shipped)
        for name in (RESULTS, FAILURES):
            added = _read_lines(self._folder / name, shipped[name], PART_BYTES - len(lines))
            shipped[name] += len(added)
            lines += added
        if not lines or not self._put_snapshot(read_manifest(self._folder)):
            return False
        self._pending = compress_lines(lines), shipped
        return True

    def _put_snapshot(self, manifest: Manifest) -> bool:
        """Ship the fleet and the products if they changed; return False while they do not fit the manifest."""
        names = [name for name in SNAPSHOT_FILES if (name != FLEET or self._grows) and (self._folder / name).is_file()]
        version = [(name, self._describe(name, manifest)) for name in names]
        if version in (self._snapshot, []):
            return True
        files = {}
        for name in names:
            shutil.copyfile(self._folder / name, self._work / name)
            files[name] = self._work / name
        if FLEET in files and sha256_of(files[FLEET]) != manifest.fleet.sha256:
            return False  # the manifest follows within a second
        self._log.put_snapshot(files, encode_record(manifest, tuple(files)))
        self._snapshot = version
        return True

    def _describe(self, name: str, manifest: Manifest) -> object:
        """Return what differs between two contents of a file."""
        if name == FLEET:
            return manifest.fleet.sha256
        found = (self._folder / name).stat()
        return found.st_size, found.st_mtime_ns


def _read_lines(path: Path, start: int, size: int) -> bytes:
    """Return complete lines from an offset, of about ``size`` bytes, but at least one line."""
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(max(size, 1))
        if content and b"\n" not in content:
            content += file.readline()
    return content[: content.rfind(b"\n") + 1]


async def persist(action: Callable[[], Awaitable[T]], stop: StopToken, retry_seconds: float) -> T:
    """Repeat an action until the storage lets it end.

    Raises:
        InvalidObjectError: the action read an object that is damaged.
        ObjectStoreError: the storage was away for an hour, or until a stop.
    """
    began = time.monotonic()
    while True:
        try:
            return await action()
        except InvalidObjectError:
            raise
        except ObjectStoreError as error:
            if stop.interrupted or time.monotonic() - began >= GIVE_UP_SECONDS:
                raise
            log.warning("storage_unavailable", reason=str(error), seconds=retry_seconds)
        await anyio.sleep(retry_seconds)
