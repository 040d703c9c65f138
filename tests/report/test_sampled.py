"""Report, metrics and payload of samples and of runs that carry answers forward."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from auditor.hooks.payload import build_payload
from auditor.hooks.prometheus import render_metrics
from auditor.report.render import write_report
from auditor.runs.selection_info import Recheck, SelectionInfo
from tests.report.pages import ParsedPage, parse_page
from tests.runs.run_folders import carried_run, edit_manifest, failed, named, ok, sampled

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)
FLEET = [named(n, product=f"p{n % 2}") for n in range(1_000)]
SAMPLED = FLEET[:100]
ANSWERS = [ok(device, ("ble", f"1.{n % 3}")) for n, device in enumerate(SAMPLED)]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return sampled(tmp_path / "runs" / "run", FLEET, SAMPLED, ANSWERS).folder


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    times = ["2026-11-21 12:00:00", "2026-11-20 12:00:00", "2026-11-01 12:00:00"]
    carried_answers = [(ok(device, ("ble", "1.0")), times[n % 3]) for n, device in enumerate(FLEET[100:])]
    folder = carried_run(tmp_path / "runs" / "run", FLEET, ANSWERS, carried_answers).folder
    recheck = Recheck(910, 10, 10, 1, 0.1, 0.0025, 0.445)
    edit_manifest(folder, lambda manifest: replace(manifest, selection=SelectionInfo("incremental", recheck=recheck)))
    return folder


def page_of(folder: Path) -> ParsedPage:
    return parse_page(write_report(folder, folder.parent.parent / "page.html", now=NOW))


def samples_of(folder: Path) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(render_metrics(folder).decode()):
        for each in family.samples:
            key = tuple(text for name, text in each.labels.items() if name != "run")
            found.setdefault(each.name, {})[key] = each.value
    return found


def test_report_of_a_sample_is_labelled_and_has_intervals(sample: Path) -> None:
    page = page_of(sample)
    assert "sample 100% of 100 devices sampled from 1,000 answered" in page.text
    assert "sample A random sample of the fleet: shares are estimates with 95% intervals." in page.text
    assert "partial" not in page.text
    assert "devices.pending" not in page.figures
    assert page.figures["devices.unsampled"] == "900"
    assert page.figures["devices.sampled"] == "100"
    assert "A version that is not listed runs on at most" in page.text
    assert len(page.rows) == 6
    for row in page.rows:
        assert re.fullmatch(r"\d+\.\d to \d+\.\d%", row[5])
    assert "products.incomplete" not in page.figures


def test_report_of_a_sample_has_the_products_of_failed_devices(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "runs" / "run", FLEET, SAMPLED, [*ANSWERS[:-1], failed(SAMPLED[-1])]).folder
    page = page_of(folder)
    assert "sample partial" in page.text
    assert page.figures["products.incomplete"] == "1"
    assert "of 100 devices sampled from 1,000 answered" in page.text


def test_report_with_carried_answers_has_their_ages(carried: Path) -> None:
    page = page_of(carried)
    assert page.figures["devices.answered"] == "1.0"
    assert page.figures["ages.carried"] == "900"
    assert [page.figures[f"ages.{name}"] for name in ("queried", "day", "week", "older")] == [
        "100",
        "300",
        "300",
        "300",
    ]
    assert (
        "900 of 1,000 devices have carried results; results are from 2026-11-01 12:00 to 2026-11-22 02:00 UTC"
        in page.text
    )
    sentence = "Recheck: 1 of 10 results without a sign of change were outdated: 10.00% (95% interval 0.25 to 44.50%)"
    assert sentence in page.text


def test_metrics_do_not_count_unsampled_devices_as_pending(sample: Path) -> None:
    found = samples_of(sample)
    assert found["auditor_devices"]["demo", "pending"] == 0
    assert found["auditor_devices"]["demo", "unsampled"] == 900
    assert found["auditor_source_devices"] == {("queried",): 100, ("carried",): 0, ("unsampled",): 900}
    assert {kind: number for (kind,), number in found["auditor_run_warnings"].items() if number} == {"sample": 1}
    shares = found["auditor_module_version_share"]
    assert len(shares) == 18
    for key, value in shares.items():
        if "estimate" in key:
            low, high = (
                shares[tuple(bound if each == "estimate" else each for each in key)] for bound in ("low", "high")
            )
            assert low < value < high


def test_metrics_with_carried_answers_have_the_oldest_answer(carried: Path) -> None:
    found = samples_of(carried)
    assert found["auditor_source_devices"] == {("queried",): 100, ("carried",): 900}
    oldest = datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()
    assert found["auditor_oldest_answer_timestamp_seconds"][()] == oldest
    assert "auditor_module_version_share" not in found


def test_payload_of_a_complete_sample_has_no_problems(sample: Path) -> None:
    payload = build_payload(sample)
    content = payload.data
    assert not payload.has_problems
    assert content["devices"] == {"ok": 100, "empty": 0, "not_found": 0, "failed": 0, "pending": 0, "unsampled": 900}
    assert payload.message.verdict == (
        "nightly is a sample, and its shares are estimates: 100 of 100 devices sampled from 1,000 answered, 0 failed, 0 pending."
    )
    assert any("random sample: 900 of 1,000 devices" in warning["message"] for warning in content["warnings"])


def test_payload_of_a_sample_with_failed_devices_has_problems(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "runs" / "run", FLEET, SAMPLED, [*ANSWERS[:-1], failed(SAMPLED[-1])]).folder
    payload = build_payload(folder)
    assert payload.has_problems
    assert "nightly is a partial sample" in payload.message.render()


def test_payload_has_the_number_of_carried_answers(carried: Path) -> None:
    payload = build_payload(carried)
    content = payload.data
    assert (content["carried"], content["oldest_answer_at"]) == (900, "2026-11-01T12:00:00.000Z")
    assert "Carried: 900 of these answers, the oldest from 2026-11-01T12:00:00.000Z." in payload.message.render()
