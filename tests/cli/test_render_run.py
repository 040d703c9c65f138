"""A share looks the same on terminals and in the report."""

import re
from pathlib import Path

import pytest

from auditor.analysis.history import read_history
from auditor.cli.render_history import print_history
from auditor.cli.render_run import print_inventory
from auditor.query.run import Run
from auditor.report.builder import build_report
from auditor.report.render import render_html
from auditor.text.formatting import format_share
from tests.report.pages import parse_html
from tests.runs.run_folders import build, named, ok


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,999 devices of 3,000 run one version."""
    fleet = [named(number) for number in range(3_000)]
    folder = tmp_path_factory.mktemp("shares") / "runs" / "now"
    return build(folder, fleet, [ok(device, ("ble", "2" if n else "1")) for n, device in enumerate(fleet)]).folder


def percentages(text: str) -> set[str]:
    return set(re.findall(r"<?\d+(?:\.\d)?%", text))


def test_shares_near_0_and_1_are_not_shown_as_0_or_100(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Run(run) as opened:
        print_inventory(opened.manifest, opened.devices, opened.inventory())
    assert percentages(capsys.readouterr().out) == {"99.9%", "<0.1%"}
    with read_history(run.parent) as history:
        print_history(history)
    assert percentages(capsys.readouterr().out) == {"99.9%", "<0.1%"}
    rows = parse_html(render_html(build_report(run))).rows
    assert {row[4] for row in rows} == {"99.9%", "<0.1%"}


@pytest.mark.parametrize(
    ("share", "short", "aligned"),
    [
        (0.0, "0%", "0.0%"), (1.0, "100%", "100.0%"), (0.5, "50%", "50.0%"), (2 / 3, "66.7%", "66.7%"),
        (0.9999, "99.9%", "99.9%"), (1 / 152, "0.7%", "0.7%"), (0.00095, "<0.1%", "<0.1%"), (0.0004, "<0.1%", "<0.1%"), (0.29, "29%", "29.0%"),
    ],
)  # fmt: skip
def test_aligned_shares_always_have_a_tenth(share: float, short: str, aligned: str) -> None:
    assert format_share(share) == short
    assert format_share(share, aligned=True) == aligned
