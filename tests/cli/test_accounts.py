"""Several accounts in one settings file: some are selected, and each is shown."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import SECRET, Auditor, Platform


@pytest.fixture
def settings(tmp_path: Path, platform: Platform) -> Path:
    """Two accounts of the platform, and one whose key it refuses."""
    (tmp_path / "secret").write_text(SECRET)
    header, *rows = next(platform.settings.parent.glob("*.csv")).read_text().splitlines()
    lines = ['name = "three"', 'quota_sharing = "none"']
    for name, key in (("eu-west", "simulated-key"), ("us", "simulated-key"), ("dead", "no-such-key")):
        (tmp_path / f"{name}.csv").write_text(f"{header}\n{rows.pop()}\n{rows.pop()}\n")
        lines += [
            "[[account]]",
            f'name = "{name}"',
            f'endpoint = "{platform.endpoint}"',
            f'access_key_id = "{key}"',
            'access_key_secret = { file = "secret" }',
            'calls_per_second = "unlimited"',
            f'fleet = {{ file = "{name}.csv" }}',
        ]
    path = tmp_path / "three.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def accounts_of(folder: Path) -> dict[str, int]:
    """Devices that were answered, by account."""
    found: dict[str, int] = {}
    for line in (folder / "devices.jsonl").read_text().splitlines():
        name = json.loads(line)["account"]
        found[name] = found.get(name, 0) + 1
    return found


@pytest.mark.slow
def test_accounts_are_selected_by_name_for_run_check_and_plan(auditor: Auditor, tmp_path: Path, settings: Path) -> None:
    done = auditor("run", settings, "--account", "us", "--account", "eu-west")
    assert done.returncode == 0, done.stderr
    assert accounts_of(tmp_path / done.stdout.strip()) == {"eu-west": 2, "us": 2}
    assert "excludes the accounts dead (--account)" in auditor("inventory", done.stdout.strip()).stderr
    done = auditor("check", settings, "--account", "us")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
    assert done.stdout.startswith("ok   us (")
    done = auditor("plan", settings, "--account", "dead", "--format", "json")
    assert [each["account"] for each in json.loads(done.stdout)["accounts"]] == ["dead"]


def test_a_selected_account_may_use_another_fleet(auditor: Auditor, tmp_path: Path, settings: Path) -> None:
    done = auditor("run", settings, "--account", "us", "--fleet", tmp_path / "eu-west.csv")
    assert accounts_of(tmp_path / done.stdout.strip()) == {"us": 2}


@pytest.mark.parametrize("command", ["run", "check", "plan"])
def test_an_unknown_account_is_refused_with_the_nearest_name(
    auditor: Auditor, tmp_path: Path, settings: Path, command: str
) -> None:
    done = auditor(command, settings, "--account", "us", "--account", "eu_west")
    assert done.returncode == 2
    there = '"eu-west", "us", "dead"'
    assert done.stderr == (
        f'auditor: account "eu_west": is not in the settings, which have {there}; did you mean "eu-west"?\n'
    )
    assert not (tmp_path / "audits").exists()


@pytest.mark.slow
def test_a_run_of_some_accounts_is_resumed_with_the_same_ones(auditor: Auditor, tmp_path: Path, settings: Path) -> None:
    done = auditor("run", settings)
    assert done.returncode == 3
    (whole,) = (tmp_path / "audits").glob("2*")
    done = auditor("run", settings, "--resume", "--account", "dead")
    assert done.returncode == 3
    assert Path(done.stdout.strip()).name != whole.name
