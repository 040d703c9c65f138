"""`auditor run` with metrics: during the run, at its end, and after it was killed; in a file and in a Pushgateway."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.conftest import Auditor, StartPlatform
from tests.cli.test_hooks import everything_under, settings_with
from tests.forked import CapturedCommand
from tests.hooks.pushgateway_server import PASSWORD, USER, Gateway, needs_pushgateway, serving_pushgateway

FILE = '[report]\nmetrics = "auditor.prom"\n[metrics]\ninterval = "1s"\n'


def pushing(address: str) -> str:
    return f'[metrics.pushgateway]\naddress = "{address}"\nusername = "{USER}"\npassword = {{ env = "GATEWAY_PASSWORD" }}\n'


def value_of(name: str, text: str) -> float | None:
    """Return the value of the only series of a metric that has no label but the audit's name."""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and set(sample.labels) == {"run"}:
                return float(sample.value)
    return None


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come in time"
        time.sleep(0.01)


def is_running(gateway: Gateway) -> bool:
    return {v for (name, _), v in gateway.samples().items() if name == "auditor_running"} == {1}


@pytest.mark.slow
@needs_pushgateway
def test_a_run_is_under_way_in_the_file_and_in_the_pushgateway(start_platform: StartPlatform, tmp_path: Path) -> None:
    platform = start_platform("--devices", 60, "--per-second", 20)
    file = platform.settings.parent / "auditor.prom"
    env = {"GATEWAY_PASSWORD": PASSWORD}
    (tmp_path / "gateway").mkdir()
    with serving_pushgateway(tmp_path / "gateway") as gateway:
        settings = settings_with(platform, FILE + pushing(gateway.address))
        file.write_text('auditor_fleet_devices{run="simulated"} 1.0\n')
        run = CapturedCommand("run", settings, cwd=tmp_path, env=os.environ | env)
        wait_for(lambda: value_of("auditor_running", file.read_text()) == 1)
        assert value_of("auditor_fleet_devices", file.read_text()) == 1, "of the last run"
        wait_for(lambda: is_running(gateway))
        done = run.result()
        assert done.returncode == 0, done.stderr
        pushed = gateway.samples()
    text = file.read_text()
    assert (value_of("auditor_running", text), value_of("auditor_fleet_devices", text)) == (0, 60)
    written = {
        (sample.name, tuple(sorted((sample.labels | {"job": "auditor"}).items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert pushed == written
    folder = settings.parent.parent / done.stdout.strip()
    assert PASSWORD.encode() not in everything_under(folder, settings.parent) + (done.stdout + done.stderr).encode()


@pytest.mark.slow
def test_a_killed_run_leaves_its_last_sign_and_a_resume_ends_it(
    auditor: Auditor, start_platform: StartPlatform, tmp_path: Path
) -> None:
    platform = start_platform("--devices", 60, "--per-second", 20)
    file = platform.settings.parent / "auditor.prom"
    settings = settings_with(platform, FILE)
    run = CapturedCommand("run", settings, cwd=tmp_path)
    wait_for(lambda: file.exists() and value_of("auditor_running", file.read_text()) == 1)
    run.command.send_signal(signal.SIGKILL)
    run.result()
    text = file.read_text()
    assert value_of("auditor_running", text) == 1
    last_sign = value_of("auditor_running_updated_timestamp_seconds", text)
    assert last_sign is not None
    assert 0 <= time.time() - last_sign < 60
    done = auditor("run", settings, "--resume")
    assert done.returncode == 0, done.stderr
    assert value_of("auditor_running", file.read_text()) == 0
    assert value_of("auditor_running_updated_timestamp_seconds", file.read_text()) is None


@pytest.mark.slow
def test_a_pushgateway_that_is_down_is_a_warning(auditor: Auditor, start_platform: StartPlatform) -> None:
    platform = start_platform("--devices", 5, "--per-second", 0)
    table = '[metrics]\ninterval = "off"\n' + pushing("http://127.0.0.1:9")
    done = auditor("run", settings_with(platform, table), env={"GATEWAY_PASSWORD": PASSWORD})
    assert done.returncode == 0, done.stderr
    note = "the metrics could not be pushed: the Pushgateway cannot be reached: Connection refused"
    assert note in done.stderr
    assert PASSWORD not in done.stderr


def test_a_trial_pushes_nothing_and_says_so(auditor: Auditor, start_platform: StartPlatform) -> None:
    platform = start_platform("--devices", 5, "--per-second", 0)
    settings = settings_with(platform, pushing("http://127.0.0.1:9"))
    done = auditor("run", settings, "--limit", 2, env={"GATEWAY_PASSWORD": PASSWORD})
    assert done.returncode == 0, done.stderr
    assert "leaves out what others read every day: metrics; --hooks includes it" in done.stderr
    assert "could not be pushed" not in done.stderr


@pytest.mark.slow
def test_a_resume_without_the_password_is_noted(auditor: Auditor, start_platform: StartPlatform) -> None:
    platform = start_platform("--devices", 60, "--per-second", 20)
    settings = settings_with(platform, '[metrics]\ninterval = "off"\n' + pushing("http://127.0.0.1:9"))
    first = auditor("run", settings, "--for", "1s", env={"GATEWAY_PASSWORD": PASSWORD})
    assert first.returncode == 1, first.stderr
    folder = Path(settings.parent.parent, first.stdout.strip())
    assert auditor("run", settings).returncode == 2, "before a new run it is an error"
    done = auditor("resume", folder)
    assert "note: metrics will not be pushed: " in done.stderr
    assert "GATEWAY_PASSWORD is not set" in done.stderr
    assert done.returncode == 0, done.stderr
