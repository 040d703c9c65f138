"""Runs that fail for a few devices only: within max_failed they are successes everywhere, and the alert stays silent."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import anyio
import pytest
from prometheus_client.parser import text_string_to_metric_families

import auditor
from auditor.analysis.history import read_history
from auditor.audit.resume import find_unfinished
from auditor.cli.app import main
from auditor.hooks.payload import build_payload
from auditor.hooks.prepare import prepare_hooks
from auditor.hooks.runner import run_hooks
from auditor.report.builder import build_report
from auditor.report.render import render_html
from auditor.runs.folder import RunCatalog
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.audits import plain_world, settings_at
from tests.integration.test_resume_failures import fail_devices

DAYS, DEVICES, FAILING = 12, 400, 3
DAY, HOUR = 86_400, 3_600
RULES = (Path(__file__).parents[2] / "deploy" / "prometheus" / "auditor.rules.yml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Night:
    """A run, the metrics that its hook wrote, and when it ended."""

    result: auditor.AuditResult
    metrics: dict[str, float]

    @property
    def ended(self) -> float:
        return datetime.fromisoformat(str(self.result.manifest.finished_at)).timestamp()


def audit(folder: Path, world: World, day: int, failing: set[int]) -> Night:
    """Audit as of a day before today, by the platform's clock, and run the hooks."""

    async def run() -> auditor.AuditResult:
        async with Simulator(world, clock_offset=(day - DAYS - 1) * DAY) as platform:
            fail_devices(platform, world, failing, "iot.common.AuthActionPermissionDeny")
            return await auditor.run_audit(settings(platform), with_hooks=True)

    def settings(platform: Simulator) -> auditor.Settings:
        report = {"metrics": str(folder / "auditor.prom")}
        return settings_at(folder, platform, name="nightly", max_failed="1.25%", concurrency=32, report=report)

    result = anyio.run(run, backend_options={"use_uvloop": True})
    hooks = prepare_hooks(auditor.parse_settings(dict(result.manifest.settings or {})))
    results = run_hooks(result.folder, hooks, exit_code=result.exit_code)
    assert (results.exit_code, results.problems) == (result.exit_code, ())
    return Night(result, dict(read_samples(folder / "auditor.prom")))


def read_samples(path: Path) -> Iterator[tuple[str, float]]:
    """Yield the value of each sample by its name and labels, without that of the run."""
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()) if name != "run")
            yield f"{sample.name}{{{labels}}}" if labels else sample.name, sample.value


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> list[Night]:
    folder = tmp_path_factory.mktemp("nights")
    world = plain_world(DEVICES)
    world.write_fleet(folder / "fleet.csv")
    return [audit(folder, world, day, {(17 * day + n) % DEVICES for n in range(FAILING)}) for day in range(DAYS)]


def alerts(nights: list[Night], *, left_out: int | None = None) -> list[float]:
    """Return the times at which AuditorNoSuccess fires, checked every hour, until a day after the end."""
    text = r"time\(\) - run:(auditor_last_success_timestamp_seconds):max > (\d+) \* (\d+)$"
    metric, *numbers = re.findall(text, RULES, re.MULTILINE)[0]
    hours, seconds = map(int, numbers)
    ran = [night for number, night in enumerate(nights) if number != left_out]
    times = range(int(nights[0].ended) + 1, int(nights[-1].ended) + DAY, HOUR)
    files = [(time, [night.metrics for night in ran if night.ended <= time]) for time in times]
    return [time for time, written in files if time - written[-1][metric] > hours * seconds]


@pytest.mark.slow
def test_every_run_is_a_success(nights: list[Night]) -> None:
    folders = [night.result.folder for night in nights]
    assert [night.result.exit_code for night in nights] == [0] * DAYS
    for night in nights:
        manifest = night.result.manifest
        assert (manifest.state, manifest.exit_code, manifest.error) == ("within_tolerance", 0, None)
        assert manifest.exit_reason == auditor.ExitReason(
            "within_tolerance", "3 of 400 devices failed (0.75%, limit 1.25%)"
        )
        assert manifest.is_success
        assert auditor.verify_run(night.result.folder) == []
        assert night.metrics["auditor_last_success_timestamp_seconds"] == pytest.approx(night.ended, abs=1)
        assert night.metrics["auditor_run_exit_code"] == 0
        assert night.metrics["auditor_run_exit_reason{reason=within_tolerance}"] == 1
        assert night.metrics["auditor_run_state{state=within_tolerance}"] == 1
        assert not any(value for name, value in night.metrics.items() if name.startswith("auditor_run_warnings"))
    catalog = RunCatalog(folders[0].parent)
    newest = catalog.latest(successful=True)
    assert newest is not None
    assert newest.folder == folders[-1]


@pytest.mark.slow
def test_no_output_warns_of_the_failed_devices(nights: list[Night], capfd: pytest.CaptureFixture[str]) -> None:
    newest = nights[-1].result.folder
    assert main(["status", str(newest.parent)]) == 0
    status = capfd.readouterr().out.splitlines()
    assert "result: exit 0 (within_tolerance): 3 of 400 devices failed (0.75%, limit 1.25%)" in status
    assert not any(line.startswith("last success") for line in status)
    with auditor.Run(newest) as run:
        assert run.warnings == ()
        assert run.devices.failed == FAILING
    with read_history(newest.parent) as history:
        assert len(history.runs) == DAYS
        assert {(run.label, run.warnings) for run in history.runs} == {("within tolerance", ())}
        assert history.warnings == ()
    assert build_payload(newest).has_problems is False
    report = build_report(newest)
    page = render_html(report)
    assert (report.labels, report.caveats) == ((), ())
    assert 'class="banner' not in page
    assert "complete, failures within max_failed" in page
    assert "3 of 400 devices failed (0.75%, limit 1.25%)" in page
    assert {run.label for run in report.rollouts.runs} == {None}


@pytest.mark.slow
def test_alert_fires_if_a_run_is_left_out_and_not_otherwise(nights: list[Night]) -> None:
    assert alerts(nights) == []
    for left_out in range(1, DAYS):
        fired = alerts(nights, left_out=left_out)
        assert fired
        assert nights[left_out - 1].ended + 36 * HOUR < fired[0] <= nights[left_out - 1].ended + 37 * HOUR + 1
        assert left_out == DAYS - 1 or fired[-1] < nights[left_out + 1].ended


@pytest.mark.slow
def test_next_run_is_a_new_one_and_one_failure_too_many_is_none(tmp_path: Path) -> None:
    world = plain_world(DEVICES)
    world.write_fleet(tmp_path / "fleet.csv")
    good = audit(tmp_path, world, 0, {1, 2, 3, 4, 5})
    settings = auditor.parse_settings(dict(good.result.manifest.settings or {}))
    assert good.result.manifest.state == "within_tolerance"
    assert find_unfinished(tmp_path / "audits", settings) is None
    bad = audit(tmp_path, world, 1, {1, 2, 3, 4, 5, 6})
    manifest = bad.result.manifest
    assert (manifest.state, manifest.exit_code, bad.result.exit_code) == ("partial", 1, 1)
    reason = "6 of 400 devices failed (1.5%, limit 1.25%), most of them with iot.common.AuthActionPermissionDeny"
    assert manifest.exit_reason == auditor.ExitReason("too_many_failed", reason)
    assert bad.metrics["auditor_last_success_timestamp_seconds"] == pytest.approx(good.ended, abs=1)
    assert bad.metrics["auditor_run_exit_reason{reason=too_many_failed}"] == 1
    assert bad.metrics["auditor_run_warnings{kind=incomplete}"] == 1
    assert [run.is_success for run in RunCatalog(tmp_path / "audits").runs] == [False, True]
