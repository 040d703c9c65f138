"""Publish runs to destinations: with retries, within a time limit, and without any effect on the run.

A destination itself says which runs it has, so nothing is stored in a run folder, and a destination that could not be
reached gets with the next run what it does not have.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from auditor.concurrency import TimeLimit
from auditor.config.settings import PublishSettings
from auditor.errors import AuditorError, DestinationError, RunFolderError
from auditor.log import log
from auditor.publish.destinations import open_destination
from auditor.publish.tables import run_digest, run_name
from auditor.resilience.retry import Backoff
from auditor.runs.folder import RunCatalog, StoredRun
from auditor.runs.manifest import MANIFEST, Manifest, file_info, read_manifest
from auditor.storage.database import is_interruption
from auditor.storage.files import check_contained, translate_os_errors
from auditor.text.durations import parse_duration
from auditor.tracing import span

T = TypeVar("T")


BACKOFF = Backoff(max_attempts=6, initial_delay=1.0, max_delay=30.0)
"""Attempts to publish a run, and the pauses between them, within the time limit of a destination."""

VERIFIED_STATES = frozenset({"complete", "within_tolerance", "partial"})
"""States of a run whose numbers were verified when it was sealed."""


@dataclass(frozen=True, slots=True)
class Publication:
    """What was published to a destination, or why nothing was.

    Attributes:
        destination: its name.
        address: where it is, without secrets.
        runs: names of the published runs.
        seconds: how long it took.
        error: why a run was not published.
    """

    destination: str
    address: str
    runs: tuple[str, ...]
    seconds: float
    error: str | None = None

    @property
    def sentence(self) -> str:
        """The line that reports it."""
        if len(self.runs) == 1:
            done = f"{self.runs[0]} published"
        else:
            done = f"{len(self.runs):,} runs published" if self.runs else "has all runs"
        if self.error is not None:
            before = f"{done}, then: " if self.runs else ""
            return f"{self.destination}: {before}{self.error}"
        return f"{self.destination}: {done}{f' in {self.seconds:.1f} s' if self.runs else ''} ({self.address})"


@dataclass(frozen=True, slots=True)
class PublisherClock:
    """Pauses and randomness; replaced in tests."""

    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random


def check_publishable(folder: Path, manifest: Manifest) -> None:
    """Raise RunFolderError unless a run has ended and verified, and its files are those that were sealed.

    An interrupted run will be resumed; publishing it before would show a part of it.
    """
    if is_interrupted(manifest):
        raise RunFolderError(f"{folder}: cannot be published: it was interrupted; resume it")
    if manifest.state not in VERIFIED_STATES:
        why = {"running": "has not ended; wait for it, or resume it"}.get(manifest.state, "was stopped; resume it")
        raise RunFolderError(f"{folder}: cannot be published: it {why}")
    if not manifest.files:
        raise RunFolderError(f"{folder}: cannot be published: it has no sealed files")
    for file in manifest.files:
        with translate_os_errors(f"{folder / file.name}: cannot be read", RunFolderError):
            check_contained(folder, file.name)
            same = file_info(folder / file.name) == file
        if not same:
            raise RunFolderError(f"{folder / file.name}: is not the file that was sealed, so the run is not published")


def publish_run(
    folder: Path, settings: PublishSettings, *, catch_up: bool = True, clock: PublisherClock | None = None
) -> Publication:
    """Publish a run to a destination, then the earlier runs of its name that the destination does not have.

    Args:
        folder: the run folder.
        settings: the destination.
        catch_up: whether to publish earlier runs, too.
        clock: for tests.

    Returns:
        What was published. Failures of the destination are part of it and are not raised.

    Raises:
        RunFolderError: the run has not ended, or did not verify, or was changed, or cannot be read.
        SettingsError: the destination is not configured as it should be.
    """
    manifest = read_manifest(folder)
    check_publishable(folder, manifest)
    publishing = _Publishing(settings, clock or PublisherClock())
    if publishing.publish(folder) and catch_up:
        runs = RunCatalog(folder.absolute().parent).named(manifest.name)
        publishing.publish_missing([run for run in runs if run.folder.name != folder.name])
    return publishing.result()


def publish_missing(
    directory: Path, settings: PublishSettings, *, name: str | None = None, clock: PublisherClock | None = None
) -> Publication:
    """Publish those runs of a directory that a destination does not have as they are, the newest first.

    Runs that have not ended or did not verify, and trials, are skipped. ``name`` is that of the runs; None: of the
    newest one. Other arguments, the result and errors are as of ``publish_run``.
    """
    catalog = RunCatalog(directory)
    newest = catalog.latest()
    if newest is None:
        raise RunFolderError(f"{directory}: contains no run")
    publishing = _Publishing(settings, clock or PublisherClock())
    publishing.publish_missing(catalog.named(newest.manifest.name if name is None else name))
    return publishing.result()


class _Publishing:
    """Runs on their way to one destination, within its time limit. The first failure of the destination ends it."""

    def __init__(self, settings: PublishSettings, clock: PublisherClock) -> None:
        self._name, self._clock = settings.name, clock
        self._destination = open_destination(settings)
        self._started, self._limit = time.monotonic(), TimeLimit(parse_duration(settings.timeout))
        self._published: list[str] = []
        self._error: str | None = None

    def result(self) -> Publication:
        seconds = time.monotonic() - self._started
        return Publication(self._name, self._destination.describe(), tuple(self._published), seconds, self._error)

    def publish(self, folder: Path) -> bool:
        """Publish a run; return whether it was published."""
        attributes = {"auditor.destination.name": self._name, "auditor.run.id": run_name(folder)}
        with span("publish", attributes) as publishing:
            with self._noting_failure():
                self._retrying(lambda: self._destination.publish(folder, self._limit))
                self._published.append(run_name(folder))
            if self._error is not None:
                publishing.fail("not_published")
        return self._error is None

    def publish_missing(self, runs: Sequence[StoredRun]) -> None:
        """Publish those of the runs that the destination does not have as they are. Damaged ones are skipped."""
        candidates = {run_name(run.folder): run for run in runs if is_candidate(run)}
        published: Mapping[str, str] = {}
        with self._noting_failure():
            if candidates:
                published = self._retrying(lambda: self._destination.published_runs(tuple(candidates), self._limit))
        for name, run in candidates.items():
            if self._error is not None:
                return
            if published.get(name) == run_digest(run.manifest):
                continue
            try:
                check_publishable(run.folder, run.manifest)
                self.publish(run.folder)
            except RunFolderError as error:
                log.warning("run_not_published", reason=str(error))

    @contextlib.contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """Keep the sentence of a failure. A text that is not ours may have a secret, and is left out."""
        try:
            yield
        except RunFolderError:
            raise
        except AuditorError as error:
            self._error = str(error)
        except Exception as error:  # noqa: BLE001  no destination may harm a run
            if is_interruption(error):
                raise KeyboardInterrupt from None
            self._error = f"an unexpected error ({type(error).__name__})"

    def _retrying(self, call: Callable[[], T]) -> T:
        """Return what a call returns; repeat it after failures that may pass, while there is time."""
        attempt = 1
        while True:
            try:
                return call()
            except DestinationError as error:
                pause = BACKOFF.delay(attempt, self._clock.random())
                if not error.retryable or attempt == BACKOFF.max_attempts or self._limit.remaining() <= pause:
                    raise
                log.info("publishing_retried", destination=self._name, reason=str(error), pause=round(pause, 1))
            self._clock.sleep(pause)
            attempt += 1


def is_candidate(run: StoredRun) -> bool:
    """Return whether a run is published without a request: it verified, and is neither a trial nor interrupted."""
    manifest = run.manifest
    return manifest.state in VERIFIED_STATES and run.sealed and not manifest.trial and not is_interrupted(manifest)


def is_interrupted(manifest: Manifest) -> bool:
    """Return whether a signal ended a run before its end."""
    return manifest.exit_reason is not None and manifest.exit_reason.code == "interrupted"


def find_publishable(path: Path) -> Path:
    """Return a run folder, or the newest run of a directory that is published without a request for it.

    Raises:
        RunFolderError: the directory has no such run, or cannot be read.
    """
    with translate_os_errors(f"{path}: cannot be read", RunFolderError):
        if os.path.lexists(path / MANIFEST):
            return path
    newest = next(filter(is_candidate, RunCatalog(path).runs), None)
    if newest is None:
        raise RunFolderError(
            f"{path}: contains no run that ended, verified, and is neither a trial nor interrupted; give a run folder"
        )
    return newest.folder
