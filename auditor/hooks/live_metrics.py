"""Metrics while a run is under way: its progress, beside the metrics of the last run that ended.

The file keeps what the last run wrote, so that no alert ends because the next run begins. Its lines
``auditor_running…`` are replaced at an interval, by a thread of its own: a slow disk or server delays no request of the
audit.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import anyio

from auditor.engine.progress import Progress, ProgressCallback
from auditor.errors import AuditorError
from auditor.hooks.metric_samples import SampleCollector, render_samples
from auditor.hooks.prepare import HookConfig
from auditor.hooks.prometheus import write_metrics_file
from auditor.hooks.pushgateway import QUICK
from auditor.log import log
from auditor.runs.manifest import Manifest, read_manifest
from auditor.storage.files import read_regular_file
from auditor.text.durations import parse_duration
from auditor.text.formatting import parse_manifest_time

MAX_FILE_BYTES = 64 << 20
"""Maximum size of a metrics file that is kept during a run."""

_PREFIXES = (b"auditor_running", b"# HELP auditor_running", b"# TYPE auditor_running")


@contextmanager
def live_metrics(config: HookConfig) -> Iterator[ProgressCallback | None]:
    """Write and push metrics at an interval; yield what is called with the progress. None: none are configured."""
    if config.metrics.interval == "off" or (config.report.metrics is None and config.pushgateway is None):
        yield None
        return
    writer = LiveMetrics(config)
    try:
        yield writer.report
    except BaseException:
        writer.close(push=True)
        raise
    else:
        writer.close(push=False)  # the hooks follow, and push all metrics


class LiveMetrics:
    """Writes the newest progress at an interval. It starts with the first progress: before, the run may be refused."""

    def __init__(self, config: HookConfig) -> None:
        self._path = None if config.report.metrics is None else Path(config.report.metrics)
        self._pushgateway = config.pushgateway
        self._interval = parse_duration(config.metrics.interval)
        self._progress: Progress | None = None
        self._reported_at = 0.0
        self._manifest: Manifest | None = None
        self._failed: set[str] = set()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def report(self, progress: Progress) -> None:
        """Keep the progress for the next write."""
        self._progress, self._reported_at = progress, time.time()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="live metrics", daemon=True)
            self._thread.start()

    def close(self, *, push: bool) -> None:
        """Write that no run is under way, and push it if requested. A write that hangs is not waited for longer."""
        if self._thread is None:
            return
        self._closed.set()
        self._thread.join(QUICK.seconds)
        if not self._thread.is_alive() and self._manifest is not None:
            samples = SampleCollector(self._manifest.name)
            samples.add("auditor_running", 0)
            self._publish(render_samples(samples), push=push)

    def _run(self) -> None:
        while not self._closed.is_set():
            with suppress(AuditorError):
                self._publish(self._render(), push=True)
            self._closed.wait(self._interval)

    def _render(self) -> bytes:
        """Return the metrics of the newest progress."""
        progress = self._progress
        if progress is None:
            return b""
        if self._manifest is None:
            self._manifest = read_manifest(progress.folder)
        reported_at = time.time() if progress.sealing else self._reported_at  # sealing reports nothing
        return render_progress(progress, self._manifest, reported_at)

    def _publish(self, text: bytes, *, push: bool) -> None:
        if self._path is not None:
            self._attempt("file", partial(write_live_metrics, text, self._path))
        if push and self._pushgateway is not None:
            send = partial(self._pushgateway.push, text, method="POST", limits=QUICK)
            self._attempt("pushgateway", partial(anyio.run, send))

    def _attempt(self, name: str, write: partial[None]) -> None:
        """Write once; log the first failure of a kind until it works again."""
        try:
            write()
        except (AuditorError, OSError) as error:
            if name not in self._failed:
                self._failed.add(name)
                log.warning("live_metrics_not_written", to=name, reason=str(error))
        else:
            self._failed.discard(name)


def render_progress(progress: Progress, manifest: Manifest, reported_at: float) -> bytes:
    """Return the metrics of a run that is under way; ``reported_at`` is in seconds since 1970."""
    samples = SampleCollector(manifest.name)
    samples.add("auditor_running", 1)
    started = parse_manifest_time(manifest.started_at)
    if started is not None:
        samples.add("auditor_running_start_timestamp_seconds", started.timestamp())
    samples.add("auditor_running_updated_timestamp_seconds", round(reported_at, 3))
    for state, devices in asdict(progress.devices).items():
        samples.add("auditor_running_devices", devices, state=state)
    for kind, requests in asdict(progress.requests).items():
        samples.add("auditor_running_requests", requests, kind=kind)
    for kind, rate in (("target", progress.target_rate), ("allowed", progress.learned_rate)):
        if rate is not None:
            samples.add("auditor_running_requests_per_second", rate, kind=kind)
    return render_samples(samples)


def write_live_metrics(text: bytes, path: Path) -> None:
    """Replace the lines of the run under way in a file of metrics; its other lines stay.

    Raises:
        RunNotWritableError: the file cannot be written.
        OSError: it is there, and cannot be read.
    """
    kept = b""
    with suppress(FileNotFoundError):
        lines = read_regular_file(path, max_bytes=MAX_FILE_BYTES).splitlines(keepends=True)
        kept = b"".join(line for line in lines if not line.startswith(_PREFIXES))
    if kept and not kept.endswith(b"\n"):
        kept += b"\n"
    write_metrics_file(kept + text, path)
