"""`auditor fleet`: discovered devices as a file, by product, and compared with a fleet file."""

import csv
import json
import re
import shlex
import signal
import time
from pathlib import Path

import duckdb
import pytest

from auditor.simulator.world import World
from tests.cli.conftest import Auditor, Platform, StartPlatform
from tests.forked import CapturedCommand

THERE = sum(device.exists for device in World(400, products=3))


@pytest.fixture
def platform(start_platform: StartPlatform) -> Platform:
    return start_platform("--devices", 400, "--products", 3, "--per-second", 0, "--fleet", "products")


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def listing(folder: Path) -> list[str]:
    return [path.name for path in (folder / "audits").glob(".discovery-*")]


def test_without_options_products_are_shown_with_their_devices_by_status(auditor: Auditor, platform: Platform) -> None:
    done = auditor("fleet", platform.settings)
    assert done.returncode == 0
    header, *rows = done.stdout.splitlines()
    assert header.split("  ")[0] == "product key"
    assert "offline" in header
    assert len(rows) == 3
    assert f"{THERE} devices of 3 products listed in" in done.stderr.replace("\n", " ")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fleet.csv", "fleet.jsonl", "fleet.parquet"])
def test_the_written_file_can_be_audited(auditor: Auditor, platform: Platform, tmp_path: Path, name: str) -> None:
    assert auditor("fleet", platform.settings, "-o", name).returncode == 0
    assert listing(platform.settings.parent) == []
    done = auditor("run", platform.settings, "--fleet", name)
    assert done.returncode == 0
    manifest = json.loads((tmp_path / done.stdout.strip() / "run.json").read_bytes())
    assert (manifest["state"], manifest["fleet"]["devices"], manifest["devices"]["not_found"]) == ("complete", THERE, 0)
    with duckdb.connect() as database:
        read = {"csv": "read_csv", "jsonl": "read_json", "parquet": "read_parquet"}[name.split(".")[1]]
        found = database.execute(
            f"SELECT count(DISTINCT iot_id), count(utc_create) FROM {read}(?)", [str(tmp_path / name)]
        )
        assert found.fetchone() == (THERE, THERE)


def test_a_hyphen_is_standard_output_with_data_only(auditor: Auditor, platform: Platform) -> None:
    done = auditor("fleet", platform.settings, "-o", "-")
    rows = rows_of(done.stdout)
    assert len(rows) == THERE
    assert list(rows[0]) == [
        "account", "product_key", "device_name", "iot_id", "device_status", "utc_create", "utc_modified",
        "nickname", "product_name", "node_type",
    ]  # fmt: skip
    assert {row["device_status"] for row in rows} <= {"ONLINE", "OFFLINE", "UNACTIVE", "DISABLE"}
    assert "device-secret-" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_fleet_file_is_compared_with_the_platform(auditor: Auditor, platform: Platform, tmp_path: Path) -> None:
    rows = rows_of(auditor("fleet", platform.settings, "-o", "-").stdout)
    left_out, *kept = rows
    text = "".join(f"{row['product_key']},{row['device_name']}\n" for row in kept)
    (tmp_path / "mine.csv").write_text(f"product_key,device_name\n{text}{left_out['product_key']},dev-99999999\n")
    done = auditor("fleet", platform.settings, "--against", "mine.csv", "-o", "differences.csv")
    assert done.returncode == 0
    assert (
        f"1 of {THERE} devices in the file are unknown to the platform, 1 of {THERE} listed devices are missing in the file"
        in done.stderr
    )
    found = {row["difference"]: row["device_name"] for row in rows_of((tmp_path / "differences.csv").read_text())}
    assert found == {"unknown": "dev-99999999", "missing": left_out["device_name"]}
    failed = auditor("fleet", platform.settings, "--against", "mine.csv", "--fail-on", "unknown,missing")
    assert failed.returncode == 4
    assert failed.stderr.splitlines()[-1] == "auditor: --fail-on matched: 1 unknown, 1 missing"
    assert auditor("fleet", platform.settings, "--against", "mine.csv", "--fail-on", "not_seen").returncode == 0
    as_json = auditor("fleet", platform.settings, "--against", "mine.csv", "--format", "json")
    assert {row["device_name"] for row in json.loads(as_json.stdout)["differences"]} == set(found.values())
    assert listing(platform.settings.parent) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("-o", "fleet.txt"), "fleet.txt: the name does not give a format; use --format csv, jsonl or parquet"),
        (("--format", "csv"), "--format csv needs a file: name one with -o, or use -o - for standard output"),
        (("--summary", "-o", "-"), "--summary and -o - both write to standard output"),
        (("--fail-on", "missing"), "--fail-on needs differences: give a fleet file with --against"),
        (("--against", "x", "--fail-on", "lost"), "--fail-on 'lost': use unknown, missing, not_seen"),
        (("--against", "nowhere.csv"), "nowhere.csv: cannot be read: No such file or directory"),
        (("-o", "no/such/fleet.csv"), "no/such/fleet.csv: the folder no/such does not exist; name a file with -o"),
        (("-o", ".", "--format", "csv"), ".: is a folder; name a file with -o"),
        (("-o", "-", "--format", "xlsx"), "--format xlsx: a fleet file is csv, jsonl or parquet; use one of these"),
    ],
)
def test_invalid_options_of_fleet_are_one_sentence(
    auditor: Auditor, platform: Platform, options: tuple[str, ...], said: str
) -> None:
    done = auditor("fleet", platform.settings, *options)
    assert done.returncode == 2
    assert listing(platform.settings.parent) == []  # and nothing was asked
    assert said in done.stderr


def pages_in(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.slow
@pytest.mark.live
def test_a_killed_or_interrupted_listing_is_resumed(
    auditor: Auditor, start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = start_platform("--devices", 12_000, "--per-second", 10, "--fleet", "products")
    folder, settings = platform.settings.parent, platform.settings
    journal = folder / "audits" / ".discovery-simulated" / "0.jsonl"
    pages = 0
    for ending, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        more = () if ending == signal.SIGKILL else ("--resume",)
        process = CapturedCommand("fleet", settings, "-o", tmp_path / "fleet of all.csv", *more, cwd=tmp_path)
        while pages_in(journal) < pages + 20:
            time.sleep(0.02)
        process.command.send_signal(ending)
        done = process.result(20)
        assert done.returncode == code
        assert listing(folder) == [".discovery-simulated"]
        assert not (tmp_path / "fleet of all.csv").exists()
        pages = pages_in(journal)
    command = shlex.split(done.stderr.partition("no file was written; resume with: ")[2].splitlines()[0])
    assert command == ["auditor", "fleet", str(settings), f"--out={tmp_path / 'fleet of all.csv'}", "--resume"]
    done = auditor(*command[1:])
    assert done.returncode == 0
    assert re.search(r"resuming the discovery that started at 20\S+Z", done.stderr.splitlines()[0])
    rows = rows_of((tmp_path / "fleet of all.csv").read_text())
    assert len({row["iot_id"] for row in rows}) == len(rows) == sum(device.exists for device in World(12_000))
    assert listing(folder) == []


def test_a_listing_with_other_settings_is_not_resumed(
    auditor: Auditor, start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = start_platform("--devices", 3000, "--per-second", 10, "--fleet", "products")
    process = CapturedCommand("fleet", platform.settings, cwd=tmp_path)
    while pages_in(platform.settings.parent / "audits" / ".discovery-simulated" / "0.jsonl") < 2:
        time.sleep(0.02)
    process.command.send_signal(signal.SIGKILL)
    assert process.result(20).returncode == -signal.SIGKILL
    platform.settings.write_text(platform.settings.read_text().replace('"all"', '["k1nowhere"]'))
    done = auditor("fleet", platform.settings, "--resume")
    assert done.returncode == 2
    assert "was listed with other settings; drop --resume to start again" in done.stderr


@pytest.mark.slow
def test_a_second_listing_is_refused_and_an_audit_is_not(
    auditor: Auditor, start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = start_platform("--devices", 40_000, "--per-second", 10, "--fleet", "products")
    process = CapturedCommand("fleet", platform.settings, cwd=tmp_path)
    try:
        while pages_in(platform.settings.parent / "audits" / ".discovery-simulated" / "0.jsonl") < 2:
            time.sleep(0.02)
        second = auditor("fleet", platform.settings)
        assert second.returncode == 2
        assert "another process is listing this fleet; wait for it to end" in second.stderr
        assert auditor("run", platform.settings, "--for", "1s").returncode in {0, 1}
        assert process.command.poll() is None
    finally:
        process.command.send_signal(signal.SIGKILL)
        process.result(20)


def test_a_listing_is_kept_if_its_file_cannot_be_written(auditor: Auditor, platform: Platform, tmp_path: Path) -> None:
    full = auditor("fleet", platform.settings, "-o", "/dev/full", "--format", "csv")
    assert full.returncode == 3
    assert listing(platform.settings.parent) == [".discovery-simulated"]
    picked = auditor("fleet", platform.settings, "--account", "simulated")
    assert picked.returncode == 0
    assert listing(platform.settings.parent) == [".discovery-simulated"]  # of all accounts: that is another one
    done = auditor("fleet", platform.settings, "-o", "fleet.csv", "--resume")
    assert (done.returncode, len(rows_of((tmp_path / "fleet.csv").read_text()))) == (0, THERE)
    assert listing(platform.settings.parent) == []


def test_an_empty_fleet_is_a_settings_error(auditor: Auditor, platform: Platform, tmp_path: Path) -> None:
    text = platform.settings.read_text().replace(
        '{ products = "all" }', '{ products = "all", include = { device_name = ["nobody*"] } }'
    )
    assert "nobody" in text
    platform.settings.write_text(text)
    done = auditor("fleet", platform.settings, "-o", "fleet.csv")
    assert done.returncode == 2
    assert "no listed device matches the settings, so no file was written; see fleet in the settings" in done.stderr
    assert not (tmp_path / "fleet.csv").exists()


def test_a_failed_product_is_listed_again_by_a_resume(auditor: Auditor, platform: Platform, tmp_path: Path) -> None:
    whole = platform.settings.read_text()
    platform.settings.write_text(whole.replace('"all"', '["k1nowhere"]'))
    first = auditor("fleet", platform.settings)
    assert first.returncode in {1, 2}
    assert "product k1nowhere: 0 devices listed" in first.stderr
    assert listing(platform.settings.parent) == [".discovery-simulated"]
    again = auditor("fleet", platform.settings, "--resume")
    assert again.returncode == first.returncode
    platform.settings.write_text(whole)
    assert auditor("fleet", platform.settings, "-o", "fleet.csv").returncode == 0
    assert listing(platform.settings.parent) == []


def test_a_refused_account_ends_with_3_and_writes_nothing(auditor: Auditor, platform: Platform, tmp_path: Path) -> None:
    (platform.settings.parent / "simulated-secret").write_text("wrong")
    done = auditor("fleet", platform.settings, "-o", "fleet.csv")
    assert done.returncode == 3
    assert "its devices cannot be listed: the platform refuses it: SignatureDoesNotMatch" in done.stderr
    assert not (tmp_path / "fleet.csv").exists()
