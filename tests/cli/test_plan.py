"""`auditor plan`: what an audit will take, in words and as JSON, and whether it fits as the exit code."""

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
    path = settings_file(tmp_path, NOWHERE, per_second=10)
    fleet_of(tmp_path, 970)
    return path


def test_a_plan_is_told_without_a_key_and_without_asking(auditor: Auditor, tmp_path: Path, settings: Path) -> None:
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
    assert row.split() == ["eu", "970", "1.00", "970", "10", "0:01:40", "3"]
    assert "no run of this name yet: one call a device is assumed" in done.stdout
    assert "an answer is assumed to take 0.3 s" in done.stdout
    assert "fit" not in done.stdout
    assert not (tmp_path / "audits").exists()


@pytest.mark.parametrize(
    ("window", "code", "said"), [("100s", 0, "it fits into 0:01:40"), ("99s", 1, "it does not fit into 0:01:39")]
)
def test_whether_it_fits_is_the_exit_code(auditor: Auditor, settings: Path, window: str, code: int, said: str) -> None:
    done = auditor("plan", settings, "--window", window)
    assert done.returncode == code
    assert said in done.stdout.splitlines()
    as_json = auditor("plan", settings, "--window", window, "--format", "json")
    assert as_json.returncode == code
    assert json.loads(as_json.stdout)["fits"] is (code == 0)


def test_the_limit_that_is_advised_fits(auditor: Auditor, settings: Path) -> None:
    done = auditor("plan", settings, "--window", "38s")
    assert done.returncode == 1
    advice = 'account "eu": 37.9% of the devices fit, 368 of 970 a window; all of them take 3 windows, or 3 accounts with this quota instead of 1'
    assert advice in done.stdout.splitlines()
    assert auditor("plan", settings, "--window", "38s", "--limit", 368).returncode == 0
    assert auditor("plan", settings, "--window", "38s", "--limit", 369).returncode == 1


def test_the_share_that_is_advised_fits(auditor: Auditor, settings: Path) -> None:
    settings.write_text(settings.read_text() + "share = 0.5\n")
    done = auditor("plan", settings, "--window", "150s")
    assert 'account "eu": would fit with share = 0.67 instead of 0.5' in done.stdout.splitlines()
    settings.write_text(settings.read_text().replace("share = 0.5", "share = 0.67"))
    assert auditor("plan", settings, "--window", "150s").returncode == 0


def test_the_at_once_that_is_advised_is_enough(auditor: Auditor, settings: Path) -> None:
    settings.write_text(settings.read_text().replace("per_second = 10", "per_second = 1000"))
    said = "at_once = 64 is too little for these quotas, so it takes longer; set at_once = 300"
    told = auditor("plan", settings).stdout.splitlines()
    assert said in told
    assert told[1].split() == ["eu", "970", "1.00", "970", "1,000", "1.0", "s", "300"]
    settings.write_text(f"at_once = 300\n{settings.read_text()}")
    assert "at_once" not in auditor("plan", settings).stdout


def test_without_a_quota_the_time_is_unknown_and_nobody_says_that_it_fits(auditor: Auditor, settings: Path) -> None:
    settings.write_text(settings.read_text().replace("per_second = 10", 'per_second = "unlimited"'))
    done = auditor("plan", settings, "--window", "8h")
    assert done.returncode == 1
    assert 'account "eu": per_second tells no quota, so the time is unknown' in done.stdout.splitlines()
    assert "whether it fits into 8:00:00 is unknown" in done.stdout.splitlines()
    assert auditor("plan", settings).returncode == 0


@pytest.mark.parametrize("window", ["8", "8 hours", "-1h", "0s", ""])
def test_a_window_that_is_no_length_of_time_is_one_sentence(auditor: Auditor, settings: Path, window: str) -> None:
    done = auditor("plan", settings, f"--window={window}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"auditor: {window!r} is no length of time; give one such as 4h, 90m or 1h30m\n"


def test_a_fleet_that_cannot_be_used_and_a_limit_of_nothing_exit_with_2(
    auditor: Auditor, tmp_path: Path, settings: Path
) -> None:
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
        *("at_once", "at_once_advised", "window", "fits", "accounts", "strategies"),
    ]
    (account,) = table["accounts"]
    assert list(account) == [
        *("account", "devices", "devices_assumed", "calls_each", "calls_assumed", "calls", "per_second", "share"),
        *("seconds", "in_flight", "fits", "remedy"),
    ]
    assert (table["devices"], account["remedy"]) == (2, None)
    unfit = json.loads(auditor("plan", settings, "--window", "38s", "--format", "json").stdout)
    assert unfit["accounts"][0]["remedy"] == {"share": None, "devices": 368, "windows": 3}


def test_below_the_plan_strategies_that_ask_less_are_compared(auditor: Auditor, settings: Path) -> None:
    done = auditor("plan", settings, "--window", "38s", "--sample", 97, "--precision", "5%")
    lines = done.stdout.splitlines()
    rows = {cells[0]: cells[1:] for cells in (re.split(r"\s{2,}", line.strip()) for line in lines) if len(cells) > 3}
    assert rows["strategy"] == ["calls", "time", "oldest", "mean", "error"]
    assert rows["every device"] == ["970", "0:01:40", "tonight"]
    assert rows["rolling, in 38.0 s"] == ["368", "38.0 s", "2 nights", "1.0"]
    assert rows["sample of 97"] == ["97", "10.0 s", "tonight", "+-9.8%"]
    assert lines[-1] == "what would fit: rolling, in 38.0 s; sample of 97; sample for +-5%"


def test_strategies_are_the_same_as_json(auditor: Auditor, settings: Path) -> None:
    table = json.loads(auditor("plan", settings, "--calls", 100, "--format", "json").stdout)
    assert [(each["strategy"], each["rule"]) for each in table["strategies"]] == [
        *(("full", None), ("since", "strict"), ("since", "reconnected"), ("rolling", None), ("sample", None)),
    ]
    rolling = table["strategies"][3]
    assert list(rolling) == [
        *("strategy", "rule", "sample", "precision", "budget", "window", "devices", "calls", "calls_least", "seconds"),
        *("seconds_least", "oldest_nights", "mean_nights", "half_width", "recheck_rate", "recheck_low", "recheck_high"),
        *("recheck_run", "run", "fits"),
    ]
    assert (rolling["budget"], rolling["calls"], rolling["oldest_nights"]) == (100, 100, 10)


def test_an_audit_tells_what_was_planned_and_the_next_plan_rests_on_it(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    settings = settings_file(tmp_path, platform.endpoint, per_second=500, page_size=2)
    (tmp_path / "fleet.csv").write_text((platform.settings.parent / "simulated-fleet.csv").read_text())
    plan = json.loads(auditor("plan", settings, "--format", "json").stdout)
    done = auditor("run", settings, env={"CANARY": SECRET})
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\d+ requests in \d\.\d s, planned 0\.3 s \(", done.stderr, re.MULTILINE)
    folder = tmp_path / done.stdout.strip()
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["planned"] == {"requests": 120, "seconds": plan["seconds"], "in_flight": plan["in_flight"]}
    after = json.loads(auditor("plan", settings, "--format", "json").stdout)
    assert after["run"] == folder.name
    lines = [json.loads(line) for line in (folder / "devices.jsonl").read_text().splitlines()]
    assert after["calls"] == sum(line["attempts"] for line in lines) > 120  # most devices have several pages
    assert f"calls each are those of the run {folder.name}" in auditor("plan", settings).stdout.splitlines()


def test_a_broken_run_is_passed_over_with_a_warning_and_the_data_stay_clean(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    folder = tmp_path / auditor("run", platform.settings).stdout.strip()
    (folder / "devices.parquet").write_bytes(b"no parquet")
    done = auditor("plan", platform.settings, "--format", "json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["run"] is None
    assert "a run is passed over" in done.stderr


def test_names_cannot_act_on_the_terminal(auditor: Auditor, platform: Platform) -> None:
    runs = platform.settings.parent / "audits"
    folder = runs.parent / auditor("run", platform.settings, "--out", runs).stdout.strip()
    folder.rename(runs / "evil\x1b[31m")
    shown = auditor("plan", platform.settings).stdout
    assert "calls each are those of the run evil\\x1b[31m" in shown.splitlines()
    assert "\x1b" not in shown
