"""`auditor run` and the commands that read its folder: exit codes, clear errors, no lost results."""

import csv
import io
import json
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from auditor.simulator.world import World
from tests.cli.conftest import SECRET, Auditor, Platform, StartPlatform, command, settings_file
from tests.database import connect

CONTRACT = {
    "run.json",
    "fleet.parquet",
    "devices.jsonl",
    "failures.jsonl",
    "modules.parquet",
    "devices.parquet",
    "inventory.csv",
    "inventory.json",
}


def manifest_of(folder: str | Path) -> dict[str, object]:
    loaded: dict[str, object] = json.loads(Path(str(folder).strip(), "run.json").read_text())
    return loaded


def counts_of(manifest: dict[str, object]) -> dict[str, int]:
    counts = manifest["devices"]
    assert isinstance(counts, dict)
    return counts


def only_sentence(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.slow
def test_every_command_reads_a_complete_run_consistently(auditor: Auditor, platform: Platform) -> None:
    done = auditor("run", platform.settings)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert {path.name for path in folder.iterdir()} == CONTRACT
    manifest = manifest_of(folder)
    assert manifest["state"] == "complete"
    counts = counts_of(manifest)
    world = World(120)
    truth = Counter(
        "not_found" if not device.exists else "ok" if device.activated and device.modules else "empty"
        for device in world
    )
    assert counts == {
        "ok": truth["ok"],
        "empty": truth["empty"],
        "not_found": truth["not_found"],
        "failed": 0,
        "pending": 0,
    }

    assert auditor("verify", folder).returncode == 0
    table = auditor("inventory", folder)
    assert table.returncode == 0
    assert "complete: 120 devices" in table.stdout
    as_csv = list(csv.DictReader(io.StringIO(auditor("inventory", folder, "--format", "csv").stdout)))
    as_json = json.loads(auditor("inventory", folder, "--format", "json").stdout)["inventory"]
    as_lines = [json.loads(line) for line in auditor("inventory", folder, "--format", "jsonl").stdout.splitlines()]
    parquet = folder.parent / "inventory.parquet"
    assert auditor("inventory", folder.parent, "--format", "parquet", "-o", parquet).returncode == 0
    rows = connect().execute("FROM read_parquet(?)", [str(parquet)]).fetchall()
    expected = Counter(
        (device.product_key, module.module_name, module.module_version)
        for device in world
        if device.exists and device.activated
        for module in device.modules
    )
    assert as_json == as_lines
    assert {(r["product_key"], r["module_name"], r["module_version"]): r["devices"] for r in as_json} == expected
    assert {(r["product_key"], r["module_name"], r["module_version"]): int(r["devices"]) for r in as_csv} == expected
    assert {(key, name, version): devices for _, key, name, version, devices, _ in rows} == expected
    assert (folder / "inventory.json").read_text() == auditor("inventory", folder, "--format", "json").stdout


def test_a_fleet_is_read_from_standard_input_up_to_a_limit(auditor: Auditor, platform: Platform) -> None:
    fleet = "".join(f"{device.iot_id}\n" for device in World(120) if device.exists)
    done = auditor("run", platform.settings, "--fleet", "-", "--limit", 7, "--out", "elsewhere", stdin=fleet)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("elsewhere/")


@pytest.mark.parametrize(("allowed", "code"), [("0", 1), ("1", 0), ('"40%"', 0), ('"30%"', 1)])
def test_max_failed_decides_between_done_and_failed(
    auditor: Auditor, tmp_path: Path, platform: Platform, allowed: str, code: int
) -> None:
    known = next(device for device in World(120) if device.exists)
    settings = settings_file(tmp_path, platform.endpoint, max_failed=0)
    settings.write_text(settings.read_text().replace("max_failed = 0", f"max_failed = {allowed}"))
    # A product key that is badly formed is refused by the platform: that device failed.
    (tmp_path / "fleet.csv").write_text(
        f"product_key,device_name\n{known.product_key},{known.device_name}\n{known.product_key},nobody-here\n-!-,nobody\n"
    )
    done = auditor("run", settings, env={"CANARY": SECRET})
    assert done.returncode == code, done.stderr
    manifest = manifest_of(done.stdout)
    assert manifest["state"] == ("partial" if code else "within_tolerance")
    assert counts_of(manifest)["failed"] == 1
    assert manifest["failures"] == [
        {"code": "iot.prod.InvalidFormattedProductkey", "devices": 1, "example": "-!-/nobody"}
    ]
    assert auditor("verify", done.stdout.strip()).returncode == 0


def test_a_wrong_secret_costs_few_calls_and_names_account_and_cause(
    auditor: Auditor, tmp_path: Path, start_platform: StartPlatform
) -> None:
    platform = start_platform("--devices", 500, "--per-second", 0)
    settings = settings_file(tmp_path, platform.endpoint, calls_per_second="unlimited")
    (tmp_path / "fleet.csv").write_text((platform.settings.parent / "simulated-fleet.csv").read_text())
    done = auditor("run", settings, env={"CANARY": "a-wrong-one"})
    assert done.returncode == 3
    assert 'account "eu"' in only_sentence(done)
    assert "SignatureDoesNotMatch" in done.stderr
    assert done.stderr.splitlines()[-1].endswith("; see docs/errors.md#SignatureDoesNotMatch")
    manifest = manifest_of(done.stdout)
    assert manifest["state"] == "aborted"
    requests = manifest["requests"]
    assert isinstance(requests, dict)
    assert requests["sent"] <= 5
    assert counts_of(manifest)["pending"] == 500


def test_an_unreachable_endpoint_is_abandoned_and_its_host_named(auditor: Auditor, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        settings = settings_file(tmp_path, f"http://127.0.0.1:{taken.getsockname()[1]}/")
        done = auditor("run", settings, env={"CANARY": SECRET})
    assert done.returncode == 3
    assert "127.0.0.1 cannot be reached" in only_sentence(done)


def test_an_untrusted_certificate_is_refused_and_its_host_named(auditor: Auditor, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.settimeout(0.2)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                try:
                    connection, _ = listener.accept()
                    connection.settimeout(1)
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    continue

        thread = threading.Thread(target=serve)
        thread.start()
        settings = settings_file(tmp_path, f"https://localhost:{listener.getsockname()[1]}/")
        ended = auditor("run", settings, env={"CANARY": SECRET})
        done.set()
        thread.join()
    assert ended.returncode == 3
    assert "localhost is not trusted" in only_sentence(ended)


def test_a_directory_that_cannot_be_written_is_one_sentence(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    (tmp_path / "in-the-way").write_text("")
    done = auditor("run", platform.settings, "--out", "in-the-way")
    assert done.returncode == 3
    assert "in-the-way: cannot be written" in only_sentence(done)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("concurrency", "concurrencey = 3\nconcurrency"), "concurrencey is not a setting; did you mean concurrency?"),
        (('{ env = "CANARY" }', '"written-out"'), "access_key_secret: keep the secret out of the settings"),
        (("fleet.csv", "no-such.csv"), "no-such.csv: cannot be read"),
        (("[[account]]", "[[account"), "is not TOML"),
    ],
)
def test_bad_settings_are_refused_with_exit_2(
    auditor: Auditor, tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    settings = settings_file(tmp_path, "http://127.0.0.1:1/", concurrency=3)
    settings.write_text(settings.read_text().replace(*change))
    done = auditor("run", settings, env={"CANARY": SECRET})
    assert done.returncode == 2
    assert said in only_sentence(done)
    assert "written-out" not in done.stdout + done.stderr
    assert not (tmp_path / "audits").exists() or not list((tmp_path / "audits").iterdir())


def test_a_fleet_with_bad_rows_makes_no_call_and_no_folder(
    auditor: Auditor, tmp_path: Path, platform: Platform
) -> None:
    (tmp_path / "bad.csv").write_text("product_key,device_name\nk1,a-device\nk1,\n,b\n")
    done = auditor("run", platform.settings, "--fleet", "bad.csv", "--out", "runs")
    assert done.returncode == 2
    assert "bad.csv: 2 bad rows" in only_sentence(done)
    assert "line 3 has a product_key but no device_name" in done.stderr
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["rnu"],
        ["run"],
        ["run", "x.toml", "--limit", "0"],
        ["run", "x.toml", "--limit", "9" * 23],
        ["inventory", "nowhere"],
    ],
)
def test_wrong_usage_exits_with_2(auditor: Auditor, tmp_path: Path, arguments: list[str]) -> None:
    settings_file(tmp_path, "http://127.0.0.1:1/").rename(tmp_path / "x.toml")
    done = auditor(*arguments, env={"CANARY": SECRET})
    assert done.returncode == 2
    assert only_sentence(done).startswith("auditor: ")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_audit_leaves_a_valid_folder(
    auditor: Auditor, tmp_path: Path, start_platform: StartPlatform, sent: signal.Signals
) -> None:
    platform = start_platform("--devices", 400, "--per-second", 50)
    process = subprocess.Popen(
        command(("run", platform.settings, "--out", "runs")), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    wait_for_lines(tmp_path / "runs", 5)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "stopping" in err
    manifest = manifest_of(tmp_path / out.strip())
    counts = counts_of(manifest)
    assert manifest["state"] == "partial"
    assert counts["pending"] > 0
    assert counts["ok"] > 0
    assert sum(counts.values()) == 400
    assert auditor("verify", out.strip()).returncode == 0
    assert auditor("inventory", out.strip()).stdout.count("partial: 400 devices") == 1


@pytest.mark.slow
def test_a_second_signal_stops_immediately_and_keeps_the_results(
    auditor: Auditor, tmp_path: Path, start_platform: StartPlatform
) -> None:
    platform = start_platform("--devices", 400, "--per-second", 20)
    process = subprocess.Popen(
        command(("run", platform.settings, "--out", "runs")), cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    folder = wait_for_lines(tmp_path / "runs", 5)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert any("stopping" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    assert manifest_of(folder)["state"] == "partial"
    lines = (folder / "devices.jsonl").read_text().splitlines()
    assert len(lines) >= 5
    assert len({json.loads(line)["iot_id"] for line in lines}) == len(lines)
    assert auditor("inventory", folder).returncode == 0


def wait_for_lines(runs: Path, count: int) -> Path:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for live in runs.glob("2*/devices.jsonl"):
            if live.read_bytes().count(b"\n") >= count:
                return live.parent
        time.sleep(0.05)
    raise AssertionError("no device was answered")


def test_a_platform_that_only_fails_is_abandoned_and_its_last_error_printed(auditor: Auditor, tmp_path: Path) -> None:
    class Sick(threading.Thread):
        port = 0

        def run(self) -> None:
            import asyncio

            async def main() -> None:
                async def sick(_: web.BaseRequest) -> web.Response:
                    return web.Response(status=503, text="<html>later</html>", content_type="text/html")

                runner = web.ServerRunner(web.Server(sick))
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                Sick.port = runner.addresses[0][1]
                await asyncio.to_thread(ended.wait)
                await runner.cleanup()

            asyncio.run(main())

    ended = threading.Event()
    server = Sick()
    server.start()
    while not Sick.port:
        time.sleep(0.01)
    settings = settings_file(tmp_path, f"http://127.0.0.1:{Sick.port}/")
    done = auditor("run", settings, env={"CANARY": SECRET})
    ended.set()
    server.join()
    assert done.returncode == 3
    assert "HTTP 503" in only_sentence(done)
