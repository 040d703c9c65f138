"""The page, the metrics and the message of a run that did not ask its whole fleet say so."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from auditor.hooks.payload import message_of
from auditor.hooks.prometheus import metrics_of
from auditor.report.render import write_report
from auditor.runs.manifest import Choice, Recheck
from tests.report.pages import Read, read
from tests.runs.run_folders import carrying, edit_manifest, failed, named, ok, sampled

NOW = datetime(2026, 11, 22, 9, tzinfo=UTC)
FLEET = [named(n, product=f"p{n % 2}") for n in range(1_000)]
DRAWN = FLEET[:100]
ANSWERS = [ok(device, ("ble", f"1.{n % 3}")) for n, device in enumerate(DRAWN)]


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return sampled(tmp_path / "runs" / "run", FLEET, DRAWN, ANSWERS).folder


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    times = ["2026-11-21 12:00:00", "2026-11-20 12:00:00", "2026-11-01 12:00:00"]
    known = [(ok(device, ("ble", "1.0")), times[n % 3]) for n, device in enumerate(FLEET[100:])]
    folder = carrying(tmp_path / "runs" / "run", FLEET, ANSWERS, known).folder
    recheck = Recheck(910, 10, 10, 1, 0.1, 0.0025, 0.445)
    edit_manifest(folder, lambda manifest: replace(manifest, choice=Choice("since", recheck=recheck)))
    return folder


def page_of(folder: Path) -> Read:
    return read(write_report(folder, folder.parent.parent / "page.html", now=NOW))


def samples_of(folder: Path) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(metrics_of(folder).decode()):
        for each in family.samples:
            key = tuple(text for name, text in each.labels.items() if name != "run")
            found.setdefault(each.name, {})[key] = each.value
    return found


def test_the_page_of_a_sample_is_labelled_and_tells_intervals_everywhere(sample: Path) -> None:
    page = page_of(sample)
    assert "A random sample: 100% of 100 devices drawn from 1,000 answered." in page.text
    assert "sample A random sample of the fleet: shares are estimates with 95% intervals." in page.text
    assert "partial" not in page.text
    assert page.figures["devices.pending"] == "0"
    assert page.figures["devices.unsampled"] == "900"
    assert page.figures["devices.drawn"] == "100"
    assert "A version that is not shown is held by at most" in page.text
    assert len(page.rows) == 6
    for row in page.rows:
        assert re.fullmatch(r"\d+\.\d to \d+\.\d%", row[5])
    svg = [
        attributes for tag, attributes in page.tags if tag == "line" and "stroke-ink" in str(attributes.get("class"))
    ]
    assert len(svg) == 6
    assert "products.lacking" not in page.figures


def test_a_sample_in_which_a_device_failed_says_where(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "runs" / "run", FLEET, DRAWN, [*ANSWERS[:-1], failed(DRAWN[-1])]).folder
    page = page_of(folder)
    assert "sample partial" in page.text
    assert page.figures["products.lacking"] == "1"
    assert "of 100 devices drawn from 1,000 answered" in page.text


def test_the_page_of_a_run_that_carries_tells_the_ages(carried: Path) -> None:
    page = page_of(carried)
    assert "100% of 1,000 devices have an answer, 900 of them carried from earlier runs." in page.text
    assert [page.figures[f"ages.{name}"] for name in ("asked", "day", "week", "older")] == ["100", "300", "300", "300"]
    assert "Carried: 900 of 1,000 devices; answers are from 2026-11-01 12:00 to 2026-11-22 02:00 UTC" in page.text
    assert "Checked: of 10 carried that were asked all the same 1 had changed: 10.00% (0.25 to 44.50%)" in page.text


def test_metrics_do_not_count_devices_that_were_not_drawn_as_pending(sample: Path) -> None:
    found = samples_of(sample)
    assert found["auditor_devices"]["demo", "pending"] == 0
    assert found["auditor_devices"]["demo", "unsampled"] == 900
    assert found["auditor_source_devices"] == {("asked",): 100, ("carried",): 0, ("unsampled",): 900}
    assert found["auditor_run_doubts"] == {("incomplete",): 0, ("tampered",): 0, ("sample",): 1, ("policy",): 0}
    shares = found["auditor_module_version_share"]
    assert len(shares) == 18
    for key, value in shares.items():
        if "estimate" in key:
            low, high = (
                shares[tuple(bound if each == "estimate" else each for each in key)] for bound in ("low", "high")
            )
            assert low < value < high


def test_metrics_of_a_run_that_carries_tell_the_oldest_answer(carried: Path) -> None:
    found = samples_of(carried)
    assert found["auditor_source_devices"] == {("asked",): 100, ("carried",): 900}
    oldest = datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()
    assert found["auditor_oldest_answer_timestamp_seconds"][()] == oldest
    assert "auditor_module_version_share" not in found


def test_a_sample_that_went_well_is_no_trouble_and_its_message_says_what_it_is(sample: Path) -> None:
    message = message_of(sample)
    told = orjson.loads(message.body)
    assert not message.trouble
    assert told["devices"] == {"ok": 100, "empty": 0, "not_found": 0, "failed": 0, "pending": 0, "unsampled": 900}
    assert told["text"] == (
        "nightly is a sample, and its shares are estimates: 100 of 100 devices drawn from 1,000 answered, 0 failed, 0 pending."
    )
    assert any("is a random sample: of 1,000 devices 900 were not drawn" in doubt for doubt in told["doubts"])


def test_a_sample_of_which_devices_failed_is_trouble(tmp_path: Path) -> None:
    folder = sampled(tmp_path / "runs" / "run", FLEET, DRAWN, [*ANSWERS[:-1], failed(DRAWN[-1])]).folder
    message = message_of(folder)
    assert message.trouble
    assert "nightly is a partial sample" in orjson.loads(message.body)["text"]


def test_a_message_tells_how_much_is_carried(carried: Path) -> None:
    told = orjson.loads(message_of(carried).body)
    assert (told["carried"], told["oldest"]) == (900, "2026-11-01T12:00:00.000Z")
    assert "Carried: 900 of these answers, the oldest of 2026-11-01T12:00:00.000Z." in told["text"]
