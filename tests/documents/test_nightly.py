"""The steps of the nightly audit work as they are written, with its three directories elsewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from auditor.config.loader import load_settings
from tests.documents.build_workspace import SECRETS
from tests.documents.pages import ROOT

PAGE = (ROOT / "docs" / "nightly.md").read_text(encoding="utf-8")
CRONTAB = re.findall(r"^```crontab\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0].splitlines()
README = (ROOT / "README.md").read_text(encoding="utf-8")
PLACES = {"/etc/auditor": "etc", "/var/lib/auditor": "state", "/opt/auditor": "opt"}


class Machine:
    """Directories in the place of those that the page names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def moved(self, text: str) -> str:
        for place, name in PLACES.items():
            text = text.replace(place, str(self.folder / name))
        return text

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line as cron does: by sh, from the user's home, with few variables."""
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(self.folder / "state"), "PYTHONPATH": str(ROOT)}
        words = ["/bin/sh", "-c", self.moved(line)]
        return subprocess.run(
            words, cwd=self.folder / "state", env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip


@pytest.fixture
def machine(tmp_path: Path, built_workspace: tuple[Path, str]) -> Machine:
    """A machine after the steps before the crontab."""
    machine = Machine(tmp_path)
    for name in PLACES.values():
        (tmp_path / name).mkdir()
    program = tmp_path / "opt" / "bin" / "auditor"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m auditor "$@"\n')
    program.chmod(0o755)
    (settings,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    settings = re.sub(r"^endpoint = .*$", f'endpoint = "{built_workspace[1]}"', settings, flags=re.MULTILINE)
    settings = settings.replace("calls_per_second = 10", "calls_per_second = 2000")
    settings = settings.replace('max_failed = "0.1%"', 'max_failed = "5%"\nquota_sharing = "none"')
    (tmp_path / "etc" / "nightly.toml").write_text(machine.moved(settings))
    installed = re.findall(r"^\$ sudo install .* /dev/stdin (\S+)$", PAGE, re.MULTILINE)
    for path, value in zip(installed, SECRETS.values(), strict=True):
        Path(machine.moved(path)).write_text(f"{value}\n")
        os.chmod(machine.moved(path), 0o600)  # noqa: PTH101  a text
    return machine


def commands() -> list[str]:
    """Return the commands of the crontab, without times and user."""
    found = [re.fullmatch(r"\d+ \d+ \* \* \* auditor ({ .*)", line) for line in CRONTAB]
    assert all(found)
    return [each[1] for each in found if each]


def test_the_lines_of_the_crontab_audit_and_log(machine: Machine) -> None:
    audit, prune = commands()
    done = machine.run(audit)
    log = (machine.folder / "state" / "auditor.log").read_text()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), log
    assert "exit 0 (success): all 238 devices have an answer" in log
    (run,) = (machine.folder / "state" / "audits").iterdir()
    assert run.name.endswith("-nightly")
    assert machine.run(prune).returncode == 0
    assert run.is_dir()


@pytest.mark.slow
def test_cron_mails_the_reason_of_a_failure(machine: Machine) -> None:
    (machine.folder / "etc" / "access-key-secret").write_text("wrong\n")
    done = machine.run(commands()[0])
    assert re.fullmatch(r"exit 3 \(refused_account\): .*\n", done.stdout), done.stdout


def test_everything_is_written_where_the_user_can_write() -> None:
    owned = re.findall(r"^\$ sudo install -d .* -o auditor .* (/\S+)$", PAGE, re.MULTILINE)
    written = re.findall(r">> (\S+)|prune (\S+)", "\n".join(CRONTAB))
    written_to = {path for pair in written for path in pair if path}
    settings = re.findall(r'^directory = "(.*)"$', PAGE, re.MULTILINE)
    assert owned == ["/var/lib/auditor"]
    assert written_to == {"/var/lib/auditor/auditor.log", *settings}
    assert all(Path(path).is_relative_to(owned[0]) for path in written_to)


def test_the_readme_has_the_same_line() -> None:
    assert re.findall(r"^```crontab\n(.*?)^```$", README, re.DOTALL | re.MULTILINE) == [f"{CRONTAB[0]}\n"]


def test_cron_and_systemd_do_the_same() -> None:
    unit = (ROOT / "deploy" / "systemd" / "auditor.service").read_text(encoding="utf-8")
    by_cron = [command.partition("; } >> ")[0].removeprefix("{ date -u; ") for command in commands()]
    assert re.findall(r"^Exec(?:Start|StopPost)=(.*)$", unit, re.MULTILINE) == by_cron
    timer = (ROOT / "deploy" / "systemd" / "auditor.timer").read_text(encoding="utf-8")
    (hour, minute) = re.findall(r"^OnCalendar=\*-\*-\* (\d\d):(\d\d)$", timer, re.MULTILINE)[0]
    assert CRONTAB[0].startswith(f"{int(minute)} {int(hour)} * * * ")


def test_the_service_has_the_paths_of_the_page() -> None:
    unit = (ROOT / "deploy" / "systemd" / "auditor.service").read_text(encoding="utf-8")
    for path in ("/etc/auditor/nightly.toml", "/etc/auditor/access-key-secret", "/opt/auditor/bin/auditor"):
        assert path in unit
        assert path in PAGE
    assert "install -D -m 600 /dev/stdin /etc/auditor/access-key-secret" in unit


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("systemd-creds") is None, reason="NOT TESTED: a secret of systemd, because it is not installed"
)
def test_a_secret_of_systemd_is_read_by_a_service_of_any_name(machine: Machine) -> None:
    unit = (ROOT / "deploy" / "systemd" / "auditor.service").read_text(encoding="utf-8")
    (secret,) = re.findall(r"`(access_key_secret = \{ command = .* \})`", PAGE)
    assert f"\n#       {secret}\n" in unit
    (credential,) = re.findall(r"^LoadCredential=(.*)$", unit, re.MULTILINE)
    assert f" --property=LoadCredential={credential} " in PAGE
    settings = machine.folder / "etc" / "nightly.toml"
    settings.write_text(re.sub(r"^access_key_secret = .*$", secret, settings.read_text(), flags=re.MULTILINE))
    passed = machine.folder / "credentials"  # as systemd passes them
    passed.mkdir()
    name, _, path = credential.partition(":")
    Path(machine.moved(path)).rename(passed / name)
    check = "/opt/auditor/bin/auditor check /etc/auditor/nightly.toml"
    assert machine.run(check).returncode != 0
    done = machine.run(f"CREDENTIALS_DIRECTORY={passed} {check}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["tuya.toml", "alibaba.toml"])
def test_a_copied_example_keeps_its_runs_beside_it(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "configs" / name).read_text(encoding="utf-8")
    for variable in re.findall(r'env = "(\w+)"', text):
        monkeypatch.setenv(variable, "value")
    copied = tmp_path / "nightly.toml"
    copied.write_text(text)
    assert load_settings(copied).directory == str(tmp_path / "audits")
