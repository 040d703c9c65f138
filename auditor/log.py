"""The program's log, by structlog, which is imported when the first message is written.

That import takes a fifth of the time of a short command, and most commands write no message. Each message has the name
of an event of ``EVENTS``, and values. People read the sentence of the event, and programs its name.
"""

import sys
from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger

EVENTS = {
    "account_stopped": "account stopped",
    "answer_misdirected": "an answer reached the wrong request; answers that name no device are confirmed",
    "baseline_not_found": "baseline run not found; all devices are queried",
    "call_budget_exhausted": "call budget already exhausted by earlier requests",
    "call_budget_without_states": "call budget does not cover connection states; devices are queried by priority",
    "cells_cut": "cells too long for Excel were cut and marked",
    "changes_not_recorded": "the changes since the previous run are not recorded",
    "checkpoint_failed": "no checkpoint; results stay on this machine",
    "checkpoint_lost": "results since the last checkpoint are lost",
    "clock_differs": "the platform's clock differs; using its time",
    "clocks_differ": "clocks differ too much to compare connection times; devices are queried",
    "concurrency_too_small": "concurrency is too small to use the quota at this latency",
    "connection_states_unknown": "connection states are unknown, so these devices are queried",
    "dataset_document_damaged": "a document of the dataset is damaged and is written again",
    "details_unavailable": "details of devices cannot be read; devices are queried one by one",
    "failed_start_not_remembered": "the failed start is not remembered; status does not show it",
    "fast_transport_unavailable": "fast transport not available, using aiohttp's session",
    "fleet_empty": "no device matches the fleet settings",
    "folder_not_renamed": "the run folder keeps the name of a wrong time",
    "hook_failed": "hook failed",
    "index_rejected": "too many results of the index are wrong; all devices are queried",
    "index_unavailable": "the index cannot be read; all devices are queried",
    "key_not_renewed": "the access key cannot be renewed; it is used until it expires, and renewed as soon as possible",
    "lines_dropped": "unreadable lines dropped; their devices are queried again",
    "live_metrics_not_written": "metrics of the run under way are not written",
    "modules_unknown": "modules of products are unknown",
    "no_earlier_run": "no earlier run can be read",
    "policy_unreadable": "policy cannot be read; devices that violate it have no priority",
    "process_stood_still": (
        "this process stood still: stopped, suspended or too busy; what failed meanwhile is requested again"
    ),
    "product_failing": "every request for a product fails; its devices have one attempt each",
    "product_not_listed": "a product cannot be listed",
    "product_not_searched": "a product cannot be searched",
    "products_not_listed": "products cannot be listed; using the configured ones",
    "progress_callback_failed": "the progress callback failed and is not called again",
    "progress_unreadable": "the progress cannot be read",
    "publishing_retried": "publishing is retried",
    "quota_exceeded": "quota exceeded: slowed down below the configured rate",
    "quota_not_shared": "the quota is not shared with other audits",
    "quota_recovered": "quota recovered",
    "quota_shared": "the quota is shared with another audit",
    "quota_shared_again": "the quota is shared again",
    "quota_shared_elsewhere": "the quota is shared in another directory: audits that use the usual one do not share it",
    "quota_storage_lost": "the shared quota is lost: using a reduced rate until it can be used again",
    "quota_unshared": "the quota is no longer shared",
    "redis_password_unencrypted": "the Redis password is sent without encryption; use rediss://",
    "releases_incomplete": "released firmware is incomplete",
    "requests_failing": "every request fails; probing the platform",
    "requests_succeeding": "the platform answers again",
    "results_not_compressed": "results not compressed",
    "retries_over_budget": "retries exceed their budget and wait",
    "run_folder_trusted": "run folder trusted",
    "run_not_loaded": "run not loaded",
    "run_not_published": "run not published",
    "run_not_resumed": "run not resumed; a new one starts",
    "run_replaceable": "other users can replace runs in this directory",
    "run_resumed_with_changes": "run resumed with changed settings",
    "run_sealed": "run sealed",
    "run_skipped": "run skipped",
    "run_unsuccessful": "the sealed run did not succeed",
    "scheduler_without_workers": "the scheduler has no worker; shards wait for one",
    "secret_readable": "all users of this machine can read a secret",
    "settings_file_changed": (
        "the settings file has changed since this run started, which continues with its earlier settings"
    ),
    "settings_not_remembered": "settings not remembered; a resume needs --settings",
    "shard_failed": "shard failed",
    "shard_left": "shard left to another process",
    "shard_not_done": "shard not done",
    "shard_progress_unreadable": "progress unreadable; its requests are not counted",
    "shard_restarted": "shard ended early, and is started again",
    "shards_queried_elsewhere": "other processes query these shards; waiting for them",
    "spans_not_sent": "spans could not be sent to the collector of traces",
    "status": "status",
    "storage_unavailable": "the storage is away; trying again",
    "time_zone_learned": "last-online times have no time zone and are read as most devices that are online show it",
    "unfinished_run_not_resumed": "unfinished run not resumed",
    "unsealed_run_left": "a run that is not sealed is left, and a new one is cut",
    "waiting_for_process": "waiting for another process",
}
"""Each event of the log with its sentence. ``docs/logs.md`` lists them with their values."""

LINE_EVENTS = {
    "command_failed": "A command ended with an error.",
    "exit": "The last line of a run: its exit code and the reason.",
    "library_message": "A library logged a message; `logger` is its name.",
    "note": "What to know about the output of a command.",
    "progress": "How far an audit is; `progress.schema.json` describes the fields.",
    "result": "What a command did or found.",
    "resuming": "A run is resumed.",
    "stopping": "A signal was received, and the audit ends.",
    "summary": "A line of the summary after a run.",
}
"""Each event of the lines that a command prints itself, with what it means."""


class Log:
    """Writes messages as structlog is configured; to standard error if it is not, since standard output is for data."""

    def __init__(self) -> None:
        self._configure: Callable[[], None] | None = None
        self._lock = Lock()
        self._written_once: set[tuple[str, str]] = set()

    def configure_by(self, configure: Callable[[], None] | None) -> None:
        """Call ``configure``, which configures structlog, when the next message is written; None: call nothing."""
        self._configure = configure
        self._written_once.clear()

    def configure(self) -> None:
        """Configure structlog now, if that is due. An audit does so at its start: later, descriptors may be short."""
        with self._lock:
            if (configure := self._configure) is not None:
                configure()
                self._configure = None

    def info(self, event: str, **values: object) -> None:
        """Write what happens as expected."""
        self._logger().info(event, **values)

    def warning(self, event: str, **values: object) -> None:
        """Write what an operator should know, though the work continues."""
        self._logger().warning(event, **values)

    def warning_once(self, event: str, **values: object) -> None:
        """Write a warning, unless this process has written the same one."""
        warning = event, repr(values)
        if warning not in self._written_once:
            self._written_once.add(warning)
            self.warning(event, **values)

    def error(self, event: str, **values: object) -> None:
        """Write what ended a part of the work."""
        self._logger().error(event, **values)

    def _logger(self) -> "FilteringBoundLogger":
        import structlog

        if self._configure is not None:
            self.configure()
        if structlog.is_configured():
            configured: FilteringBoundLogger = structlog.get_logger()
            return configured
        default: FilteringBoundLogger = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr), processors=[show_sentence, *structlog.get_config()["processors"]]
        )
        return default


log = Log()


def show_sentence(_logger: object, _method: str, values: "EventDict") -> "EventDict":
    """Replace the name of an event by its sentence, for people: a processor of structlog."""
    return {**values, "event": EVENTS.get(values["event"], values["event"])}
