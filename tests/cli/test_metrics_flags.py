"""`auditor metrics` with --modules, --max-series and --format."""

from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from auditor.cli.app import main
from tests.runs.run_folders import every_status


@pytest.fixture
def run(tmp_path: Path) -> str:
    return str(every_status(tmp_path / "run").folder)


def test_modules_are_selected_and_openmetrics_is_written(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(("metrics", run, "--modules", "def*,x", "--format", "openmetrics")) == 0
    families = {each.name: each for each in text_string_to_metric_families(capsys.readouterr().out)}  # type: ignore[no-untyped-call]
    names = {sample.labels["module_name"] for sample in families["auditor_module_devices"].samples}
    assert names == {"default"}
    assert families["auditor_modules_excluded"].samples[0].value > 1


def test_a_file_has_openmetrics_too(run: str, tmp_path: Path) -> None:
    assert main(("metrics", run, "--format", "openmetrics", "-o", str(tmp_path / "m.prom"))) == 0
    assert (tmp_path / "m.prom").read_text().endswith("# EOF\n")


@pytest.mark.parametrize("number", ["9", "100001", "-1"])
def test_a_number_of_series_out_of_range_is_refused(run: str, capsys: pytest.CaptureFixture[str], number: str) -> None:
    assert main(("metrics", run, "--max-series", number)) == 2
    assert f"--max-series {number}: give a number from 10 to 100,000" in capsys.readouterr().err
