"""`auditor metrics` with --modules, --max-series and --format."""

from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from auditor.cli.app import main
from auditor.config.loader import load_settings
from auditor.hooks.prepare import prepare_hooks
from auditor.hooks.runner import run_hooks
from tests.runs.run_folders import every_status

SETTINGS = """
policy = { file = "rules.toml" }

[[account]]
name = "demo"
endpoint = "https://iot.example"
access_key_id = { env = "ID" }
access_key_secret = { env = "SECRET" }

[report]
metrics = "auditor.prom"
group_by = ["no device has this"]

[metrics]
modules = ["def*"]
max_series = 20
"""


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


@pytest.mark.parametrize("name", ["fleet.csv", "settings.toml", "prom"])
def test_a_file_of_another_kind_is_not_replaced(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / name).write_text("precious")
    assert main(("metrics", run, "-o", str(tmp_path / name))) == 2
    assert f"-o: {name} does not end with .prom; another file is not replaced" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.slow
def test_the_settings_give_the_same_file_as_the_hooks_of_a_run(run: str, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "r"\nmodule = "default"\nminimum = "99"\n')
    (tmp_path / "s.toml").write_text(SETTINGS)
    hooks = run_hooks(run, prepare_hooks(load_settings(tmp_path / "s.toml")))
    assert not hooks.problems
    by_hooks = (tmp_path / "auditor.prom").read_text()
    assert "auditor_policy_violations{" in by_hooks
    out = tmp_path / "by-hand.prom"
    assert main(("metrics", run, "--settings", str(tmp_path / "s.toml"), "-o", str(out))) == 0
    assert out.read_text() == by_hooks
    flags = ("--rules", str(tmp_path / "rules.toml"), "--modules", "def*", "--max-series", "20")
    assert main(("metrics", run, *flags, "-o", str(out))) == 0
    assert out.read_text() != by_hooks, "no groups"
    given = ("--settings", str(tmp_path / "s.toml"), "--modules", "ble")
    assert main(("metrics", run, *given, "-o", str(out))) == 0
    assert 'module_name="ble"' in out.read_text()
    assert 'module_name="default"' not in out.read_text()
