"""`auditor plan`: estimates as a table and as JSON, and the exit code."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import SECRET, Auditor, Platform, settings_file

NOWHERE = "http://127.0.0.1:1/"


def fleet_of(folder: Path, devices: int) -> None:
    rows = "".join(f"k1,dev-{number}\n" for number in range(devices))
    (folder / "fleet.csv").write_text(f"product_key,device_name\n{rows}")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """970 devices at 9.7 calls a second: 100 seconds."""
    path = settings_file(tmp_path, NOWHERE, calls_per_second=10)
    fleet_of(tmp_path, 970)
    return path


def test_a_plan_needs_no_key_and_makes_no_call(auditor: Auditor, tmp_path: Path, settings: Path) -> None:
    done = auditor("plan", settings)
    assert (done.returncode, done.stderr) == (0, "")
    header, row, *_ = done.stdout.splitlines()
    assert re.split(r"\s{2,}", header.strip()) == [
        "account",
        "devices",
        "calls each",
        "calls",
        "calls/s",
        "time",
        "in flight",
    ]
    assert row.split() == ["eu", "970", "1.00", "970", "10", "1", "min", "40", "s", "3"]
    assert "no earlier run of this name: assuming one call per device" in done.stdout
    assert "assumed latency: 300 ms" in done.stdout
    assert "fit" not in done.stdout
    assert not (tmp_path / "audits").exists()


@pytest.mark.parametrize(
    ("window", "code", "said"), [("100s", 0, "it fits into 1 min 40 s"), ("99s", 1, "it does not fit into 1 min 39 s")]
)
def test_the_exit_code_says_whether_it_fits(
    auditor: Auditor, settings: Path, window: str, code: int, said: str
) -> None:
    done = auditor("plan", settings, "--window", window)
    assert done.returncode == code
    assert said in done.stdout.splitlines()
    as_json = auditor("plan", settings, "--window", window, "--format", "json")
    assert as_json.returncode == code
    assert json.loads(as_json.stdout)["fits"] is (code == 0)


def test_the_advised_limit_fits(auditor: Auditor, settings: Path) -> None:
    done = auditor("plan", settings, "--window", "38s")
    assert done.returncode == 1
    advice = 'account "eu": 37.9% of the devices fit, 368 of 970 per window; all of them need 3 windows, or 3 accounts with this quota instead of 1'
    assert advice in done.stdout.splitlines()
    assert auditor("plan", settings, "--window", "38s", "--limit", 368).returncode == 0
    assert auditor("plan", settings, "--window", "38s", "--limit", 369).returncode == 1


def test_the_advised_quota_share_fits(auditor: Auditor, settings: Path) -> None:
    settings.write_text(settings.read_text() + "quota_share = 0.5\n")
    done = auditor("plan", settings, "--window", "150s")
    assert 'account "eu": would fit with quota_share = 0.67 instead of 0.5' in done.stdout.splitlines()
    settings.write_text(settings.read_text().replace("quota_share = 0.5", "quota_share = 0.67"))
    assert auditor("plan", settings, "--window", "150s").returncode == 0


def test_the_advised_concurrency_is_enough(auditor: Auditor, settings: Path) -> None:
    settings.write_text(settings.read_text().replace("calls_per_second = 10", "calls_per_second = 1000"))
    said = "concurrency = 64 is too small for these quotas, so it takes longer; set concurrency = 300"
    lines = auditor("plan", settings).stdout.splitlines()
    assert said in lines
    assert lines[1].split() == ["eu", "970", "1.00", "970", "1,000", "1.0", "s", "300"]
    settings.write_text(f"concurrency = 300\n{settings.read_text()}")
    assert "concurrency" not in auditor("plan", settings).stdout


def test_without_a_quota_the_duration_is_unknown(auditor: Auditor, settings: Path) -> None:
    settings.write_text(settings.read_text().replace("calls_per_second = 10", 'calls_per_second = "unlimited"'))
    done = auditor("plan", settings, "--window", "8h")
    assert done.returncode == 1
    assert "the duration is unknown, because calls_per_second is not a number" in done.stdout.splitlines()
    assert "unknown whether it fits into 8 h" in done.stdout.splitlines()
    short = auditor("plan", settings)
    assert short.returncode == 0
    assert short.stdout.splitlines() == [
        "account  devices  calls each  calls",
        "eu           970        1.00    970",
        "",
        "no earlier run of this name: assuming one call per device",
        "the duration is unknown, because calls_per_second is not a number",
    ]
    assert "strategy" in auditor("plan", settings, "--max-calls", 100).stdout


def test_listed_fleet_is_counted_before_the_first_run(auditor: Auditor, tmp_path: Path, platform: Platform) -> None:
    settings = settings_file(tmp_path, platform.endpoint, fleet={"products": "all"}, calls_per_second=10)
    done = auditor("plan", settings, "--window", "1h", env={"CANARY": SECRET})
    assert done.returncode == 0, done.stderr
    assert done.stderr == ("note: no run has recorded the fleet of eu: reading the device counts from the platform\n")
    assert (
        'account "eu": number of devices as the platform counts them (filters are applied to a sample)' in done.stdout
    )
    assert int(done.stdout.splitlines()[1].split()[1]) > 100
    assert not (tmp_path / "audits").exists()
    failed = auditor("plan", settings)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "CANARY" in failed.stderr
    assert failed.stderr.endswith("or plan with a fleet file: auditor plan CONFIG --account=eu --fleet=FILE\n")


@pytest.mark.parametrize("window", ["8 hours", "-1h", "0s", ""])
def test_an_invalid_window_is_one_sentence(auditor: Auditor, settings: Path, window: str) -> None:
    done = auditor("plan", settings, f"--window={window}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"auditor: --window {window!r} is not a duration; give one such as 30d, 4h, 90m or 1h30m\n"


def test_an_unusable_fleet_and_a_limit_of_0_exit_with_2(auditor: Auditor, tmp_path: Path, settings: Path) -> None:
    assert auditor("plan", settings, "--limit", 0).returncode == 2
    (tmp_path / "bad.csv").write_text("product_key,device_name\nk1,\n")
    done = auditor("plan", settings, "--fleet", "bad.csv")
    assert done.returncode == 2
    assert "line 2 has a product_key but no device_name" in done.stderr


def test_json_has_these_keys_in_this_order(auditor: Auditor, settings: Path) -> None:
    done = auditor("plan", settings, "--window", "38s", "--format", "json", "--fleet", "-", stdin="k/a\n" * 3 + "k/b\n")
    table = json.loads(done.stdout)
    assert list(table) == [
        *("name", "run", "devices", "calls", "seconds", "in_flight", "latency", "latency_assumed"),
        *("concurrency", "concurrency_advised", "window", "fits", "accounts", "strategies"),
    ]
    (account,) = table["accounts"]
    assert list(account) == [
        *(
            "account",
            "devices",
            "devices_assumed",
            "devices_counted",
            "calls_per_device",
            "calls_assumed",
            "calls",
            "calls_per_second",
            "quota_share",
        ),
        *("seconds", "in_flight", "fits", "remedy", "release_requests", "release_seconds", "release_run", "read"),
    ]
    assert (table["devices"], account["remedy"]) == (2, None)
    unfit = json.loads(auditor("plan", settings, "--window", "38s", "--format", "json").stdout)
    assert unfit["accounts"][0]["remedy"] == {"quota_share": None, "devices": 368, "windows": 3}


def test_other_strategies_are_compared_below_the_plan(auditor: Auditor, settings: Path) -> None:
    done = auditor("plan", settings, "--window", "38s", "--sample", 97, "--precision", "5%")
    lines = done.stdout.splitlines()
    rows = {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in lines) if len(cells) > 3}
    assert rows["strategy"] == ["calls", "time", "oldest", "mean", "error"]
    assert rows["every device"] == ["970", "1 min 40 s", "this run"]
    assert rows["rolling, in 38.0 s"] == ["368", "38.0 s", "2 runs", "1.0"]
    assert rows["sample of 97"] == ["97", "10.0 s", "this run", "+-9.8%"]
    assert lines[-1] == "would fit: rolling, in 38.0 s; sample of 97; sample for +-5%"


def test_strategies_in_json_are_those_of_the_table(auditor: Auditor, settings: Path) -> None:
    table = json.loads(auditor("plan", settings, "--max-calls", 100, "--format", "json").stdout)
    assert [(each["strategy"], each["change_detection"]) for each in table["strategies"]] == [
        *(
            ("full", None),
            ("incremental", "strict"),
            ("incremental", "reconnected"),
            ("rolling", None),
            ("sample", None),
        ),
    ]
    rolling = table["strategies"][3]
    assert list(rolling) == [
        *("strategy", "change_detection", "sample_size", "precision", "max_calls", "window", "devices", "calls"),
        *("min_calls", "seconds", "min_seconds", "max_age_runs", "mean_age_runs", "half_width", "recheck_rate"),
        *("recheck_low", "recheck_high", "recheck_run", "run", "fits"),
    ]
    assert (rolling["max_calls"], rolling["calls"], rolling["max_age_runs"]) == (100, 100, 10)


@pytest.mark.slow
def test_an_audit_prints_its_plan_and_is_measured_for_the_next_one(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    settings = settings_file(tmp_path, platform.endpoint, calls_per_second=500, page_size=2)
    (tmp_path / "fleet.csv").write_text((platform.settings.parent / "simulated-fleet.csv").read_text())
    plan = json.loads(auditor("plan", settings, "--format", "json").stdout)
    done = auditor("run", settings, env={"CANARY": SECRET})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^time .* queries \d\.\d s \(planned 0\.3 s\); \d+ requests \(", done.stderr, re.MULTILINE)
    folder = tmp_path / done.stdout.strip()
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["planned"] == {"requests": 120, "seconds": plan["seconds"], "in_flight": plan["in_flight"]}
    after = json.loads(auditor("plan", settings, "--format", "json").stdout)
    assert after["run"] == folder.name
    lines = [json.loads(line) for line in (folder / "devices.jsonl").read_text().splitlines()]
    assert after["calls"] == sum(line["attempts"] for line in lines) > 120  # most devices have several pages
    assert f"calls each: as in the run {folder.name}" in auditor("plan", settings).stdout.splitlines()


@pytest.mark.slow
def test_a_broken_run_is_skipped_with_a_warning_on_standard_error(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    folder = tmp_path / auditor("run", platform.settings).stdout.strip()
    (folder / "devices.parquet").write_bytes(b"no parquet")
    done = auditor("plan", platform.settings, "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["run"] is None
    assert "run skipped" in done.stderr


def test_the_table_and_the_verdict_are_about_the_configured_modules(auditor: Auditor, settings: Path) -> None:
    settings.write_text(f'modules = ["default"]\n{settings.read_text()}')
    done = auditor("plan", settings, "--window", "38s")
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[1].split()[:5] == ["eu", "970", "0.01", "10", "5"]
    assert 'account "eu": reads only the module default, up to 100 devices a call' in lines
    assert "it fits into 38.0 s" in lines
    assert not any("one call per device" in line for line in lines)


def test_names_are_escaped(auditor: Auditor, platform: Platform) -> None:
    runs = platform.settings.parent / "audits"
    folder = runs.parent / auditor("run", platform.settings, "--out", runs).stdout.strip()
    folder.rename(runs / "evil\x1b[31m")
    shown = auditor("plan", platform.settings).stdout
    assert "calls each: as in the run evil\\x1b[31m" in shown.splitlines()
    assert "\x1b" not in shown
