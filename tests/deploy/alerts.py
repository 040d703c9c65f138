"""Thirty nights of a fleet with one of each problem, the metrics of each, and the alerts that must fire, by hand."""

import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from auditor.config.sections import MetricsSettings
from auditor.engine.progress import Progress
from auditor.hooks.live_metrics import render_progress, write_live_metrics
from auditor.hooks.prometheus import render_metrics
from auditor.models import Outcome
from auditor.policy.evaluate import PolicySummary, summarize_policy
from auditor.policy.loader import load_policy
from auditor.runs.folder import MODULES
from auditor.runs.manifest import DeviceCounts, Manifest, read_manifest
from auditor.runs.selection_info import RequestCounts
from auditor.storage.database import sql_literal
from auditor.text.formatting import format_utc
from tests.database import connect
from tests.runs.run_folders import START, build, edit_manifest, failed, named, ok

DAY, HOUR, MINUTE = 86_400, 3_600, 60
NIGHTS = 30

MISSING, LATE, TOLERATED, BEYOND, TAMPERED, ROLLED_BACK, THROTTLED, OLD = 8, 12, 15, 18, 21, 24, 26, 28
"""Nights with one problem each; after the last night the machine dies at noon."""

KILLED, RESUMED = 2 * HOUR + MINUTE, 7 * HOUR
"""When the process of the late run is killed, and when the run is resumed: it ends an hour later."""

CROWDED = 1
"""A night with more series than the settings allow: only one module, version and rollout has some."""

UNANSWERED = {TOLERATED: 1, BEYOND: 10}
"""Devices that failed, by night."""

GPS_RELEASED = 27
"""Night in which the rollout of ``gps`` ends, which stalled from the first night on."""

RULES = """
[[rule]]
name = "ble at least 1.1"
module = "ble"
minimum = "1.1"
"""
"""The policy of these nights."""

LAST = NIGHTS * DAY + 12 * HOUR
"""When the alerts are looked at for the last time."""

CHECKED = range(HOUR // 2, LAST, HOUR)
"""Times at which alerts are compared: at half past, since all of them begin and end near a full hour."""

FLEET = [named(number, product="p1" if number < 20 else "p2") for number in range(40)]


@dataclass(frozen=True)
class Night:
    """Metrics from a time on, in seconds since the first midnight; None: there are none any more."""

    since: int
    metrics: bytes | None


@dataclass(frozen=True)
class Firing:
    """An alert between two times, in seconds since the first midnight."""

    alert: str
    first: int
    last: int
    labels: tuple[tuple[str, str], ...] = ()


def _module(product: str, name: str) -> tuple[tuple[str, str], ...]:
    return (("account", "demo"), ("module_name", name), ("product_key", product))


def expected_firings() -> list[Firing]:
    """The alerts of the thirty nights: a run ends at 03:00, and is late after 25 hours, missing after 30."""
    end = 3 * HOUR
    return [
        Firing("AuditorRunLate", MISSING * DAY + 4 * HOUR, MISSING * DAY + 9 * HOUR),
        Firing("AuditorRunMissing", MISSING * DAY + 9 * HOUR, (MISSING + 1) * DAY + end),
        Firing("AuditorNoSuccess", MISSING * DAY + 15 * HOUR, (MISSING + 1) * DAY + end),
        Firing("AuditorRunLate", LATE * DAY + 4 * HOUR, LATE * DAY + 8 * HOUR),
        Firing("AuditorRunDied", LATE * DAY + KILLED + 10 * MINUTE, LATE * DAY + RESUMED),
        Firing("AuditorRunIncomplete", BEYOND * DAY + end, (BEYOND + 1) * DAY + end, (("state", "partial"),)),
        Firing("AuditorNoSuccess", BEYOND * DAY + 15 * HOUR, (BEYOND + 1) * DAY + end),
        Firing("AuditorRunTampered", TAMPERED * DAY + 12 * HOUR, (TAMPERED + 1) * DAY + end),
        Firing("AuditorRolledBack", ROLLED_BACK * DAY + end, (ROLLED_BACK + 1) * DAY + end, _module("p1", "ble")),
        Firing("AuditorPolicyViolated", ROLLED_BACK * DAY + end, (ROLLED_BACK + 1) * DAY + end),
        Firing("AuditorQuotaSharedBadly", THROTTLED * DAY + end, (THROTTLED + 1) * DAY + end),
        Firing("AuditorRolloutStalled", 3 * DAY + end, GPS_RELEASED * DAY + end, _module("p2", "gps")),
        Firing("AuditorDataTooOld", OLD * DAY + end, (OLD + 1) * DAY + end),
        Firing("AuditorRunLate", NIGHTS * DAY + 4 * HOUR, NIGHTS * DAY + 9 * HOUR),
        Firing("AuditorRunMissing", NIGHTS * DAY + 9 * HOUR, NIGHTS * DAY + 12 * HOUR),
    ]


def build_nights(directory: Path) -> Iterator[Night]:
    """Build the runs, one after the other, and yield the metrics that an audit writes at the end of each."""
    rules = directory / "rules.toml"
    rules.write_text(RULES)
    policy = load_policy(rules)
    metrics = b""
    verdicts: dict[tuple[int, bool], PolicySummary] = {}  # of inventories that differ only in their times
    for number in range(NIGHTS):
        if number == MISSING:
            continue
        ended = number * DAY + (8 if number == LATE else 3) * HOUR
        if number == LATE:
            yield from _under_way(directory, number * DAY, metrics)
        folder = _build_run(directory, number, ended)
        inventory = (UNANSWERED.get(number, 0), number == ROLLED_BACK)
        if inventory not in verdicts:
            verdicts[inventory] = summarize_policy(folder, policy)
        options = MetricsSettings(max_series=1 if number == CROWDED else 1_000)
        metrics = render_metrics(folder, verdicts[inventory], options=options)
        yield Night(ended, metrics)
        if number == TAMPERED:
            sealed = (folder / MODULES).read_bytes()
            with connect() as database:
                path = sql_literal(folder / MODULES)
                database.execute(
                    f"CREATE TABLE changed AS FROM {path} LIMIT 10; COPY changed TO {path} (FORMAT parquet)"
                )
            yield Night(number * DAY + 12 * HOUR, render_metrics(folder, verdicts[inventory]))
            (folder / MODULES).write_bytes(sealed)
    yield Night((NIGHTS - 1) * DAY + 12 * HOUR, None)


def _under_way(directory: Path, midnight: int, before: bytes) -> Iterator[Night]:
    """Yield the metrics of a run under way, beside those of the last one, until its process is killed; and resumed.

    A process that runs writes every few seconds; here its last words before an hour stand for them.
    """
    path = directory / "auditor.prom"
    manifest = replace(
        read_manifest(next(directory.glob("*-nightly"))), started_at=format_utc(START + midnight + 2 * HOUR)
    )
    for since, reported, ok_devices in ((2 * HOUR, KILLED, 12), (RESUMED, RESUMED + HOUR, 30)):
        counts, requests = DeviceCounts(ok=ok_devices, pending=40 - ok_devices), RequestCounts(100 * ok_devices, 0, 0)
        progress = Progress(directory, 40, counts, requests, 1, 10.0, 60.0, learned_rate=9.5)
        path.write_bytes(before)
        write_live_metrics(render_progress(progress, manifest, START + midnight + reported), path)
        yield Night(midnight + since, path.read_bytes())


def _build_run(directory: Path, number: int, ended: int) -> Path:
    unanswered = UNANSWERED.get(number, 0)
    answered_at = START + ended - (15 * DAY if number == OLD else MINUTE)
    outcomes: list[Outcome] = []
    for place, device in enumerate(FLEET):
        if place < unanswered:
            outcomes.append(failed(device))
            continue
        modules = [("mcu", "2.0")]
        if device.product_key == "p1":
            modules.append(("ble", "1.0" if number == ROLLED_BACK and place >= 5 else "1.1"))
        else:
            modules.append(("gps", "1.1" if number >= GPS_RELEASED or place % 2 else "1.0"))
        outcomes.append(structs.replace(ok(device, *modules), audited_at=answered_at))
    started, finished = format_utc(START + ended - HOUR), format_utc(START + ended)
    name = "".join(character for character in started[:19] if character.isalnum())
    folder = build(directory / f"{name}Z-nightly", FLEET, outcomes).folder
    throttled = 400 if number == THROTTLED else 2

    def end(manifest: Manifest) -> Manifest:
        state = "within_tolerance" if number == TOLERATED else manifest.state
        requests = RequestCounts(sent=4_000, retried=throttled, throttled=throttled)
        return replace(manifest, started_at=started, finished_at=finished, state=state, requests=requests)

    edit_manifest(folder, end)
    return folder


def series_of(
    nights: Sequence[Night], names: Container[str] | None = None
) -> Iterator[tuple[str, list[tuple[int, float | None]]]]:
    """Yield each series, with its value from a time on; None: from then on there is none.

    ``names``: of the metrics; None: all.
    """
    samples = [(night.since, {} if night.metrics is None else samples_of(night.metrics)) for night in nights]
    for key in sorted({key for _, found in samples for key in found}):
        if names is None or key[0] in names:
            labels = ",".join(f'{name}="{value}"' for name, value in key[1])
            yield f"{key[0]}{{{labels}}}", [(since, found.get(key)) for since, found in samples]


def with_time(name: str, value: float | None, since_start: float) -> float | None:
    """Return a value; times are moved so that the first midnight is ``since_start``."""
    return value if value is None or "timestamp" not in name else value - START + since_start


def severity_of(alert: str, rules: Path) -> str:
    found = re.search(rf"alert: {alert}\n.*?severity: (\w+)", rules.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def samples_of(metrics: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Samples by name and labels, as an independent parser reads them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.decode())
        for sample in family.samples
    }
