"""A share is told alike in terminals and on the page."""

import re
from pathlib import Path

import pytest

from auditor.analysis.history import read_history
from auditor.cli.render_history import print_history
from auditor.cli.render_run import print_inventory
from auditor.query.run import Run
from auditor.report.builder import read_page
from auditor.report.render import render
from auditor.text.formatting import part
from tests.report.pages import read_text
from tests.runs.run_folders import build, named, ok


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,999 devices of 3,000 run one version."""
    fleet = [named(number) for number in range(3_000)]
    folder = tmp_path_factory.mktemp("shares") / "runs" / "now"
    return build(folder, fleet, [ok(device, ("ble", "2" if n else "1")) for n, device in enumerate(fleet)]).folder


def told(text: str) -> set[str]:
    return set(re.findall(r"<?\d+(?:\.\d)?%", text))


def test_nearly_all_and_nearly_none_are_neither_all_nor_none_anywhere(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run(run) as opened:
        print_inventory(opened.manifest, opened.devices, opened.inventory())
    assert told(capsys.readouterr().out) == {"99.9%", "<0.1%"}
    with read_history(run.parent) as history:
        print_history(history)
    assert told(capsys.readouterr().out) == {"99.9%", "<0.1%"}
    rows = read_text(render(read_page(run))).rows
    assert {row[4] for row in rows} == {"99.9%", "<0.1%"}


@pytest.mark.parametrize(
    ("share", "short", "aligned"),
    [
        (0.0, "0%", "0.0%"), (1.0, "100%", "100.0%"), (0.5, "50%", "50.0%"), (2 / 3, "66.6%", "66.6%"),
        (0.9999, "99.9%", "99.9%"), (0.0004, "<0.1%", "<0.1%"), (0.29, "29%", "29.0%"),
    ],
)  # fmt: skip
def test_shares_below_one_another_say_the_same_with_a_tenth_always(share: float, short: str, aligned: str) -> None:
    assert part(share) == short
    assert part(share, aligned=True) == aligned
