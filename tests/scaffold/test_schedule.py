"""Units and crontab lines run the audit that was named, also with paths that need quoting."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from auditor.scaffold.schedule import Schedule

ODD = Path('/opt/100% odd $HOME/a\'b "c"')


def schedule(folder: Path, **keys: object) -> Schedule:
    return Schedule(folder / "auditor", folder / "nightly.toml", folder / "runs", "auditor", **keys)  # type: ignore[arg-type]


def test_a_crontab_line_runs_the_command_by_a_shell() -> None:
    line, prune = schedule(ODD, time="03:05").crontab_lines()
    minute, hour, *_, command = line.split(" ", 5)
    assert (minute, hour) == ("5", "3")
    assert "%" not in command.replace(r"\%", "")
    words = shlex.split(command.replace(r"\%", "%"))
    assert words[:8] == [
        "{",
        "date",
        "-u;",
        str(ODD / "auditor"),
        "run",
        str(ODD / "nightly.toml"),
        "--resume",
        "--for",
    ]
    words = shlex.split(prune.split(" ", 5)[5].replace(r"\%", "%"))
    assert words[:8] == ["{", "date", "-u;", str(ODD / "auditor"), "prune", str(ODD / "runs"), "--keep-days", "30;"]


@pytest.mark.parametrize(
    ("time", "duration", "prune"),
    [("02:00", "4h", "0 7 "), ("21:30", "90m", "0 0 "), ("02:00", "1h30s", "1 4 "), ("02:00", "7d", "0 3 ")],
)
def test_old_runs_are_deleted_an_hour_after_the_audit_must_end(time: str, duration: str, prune: str) -> None:
    assert schedule(Path("/srv"), time=time, duration=duration).crontab_lines()[1].startswith(prune)


def test_a_crontab_line_logs_where_the_audit_can_write(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    for line in Schedule(Path("/bin/echo"), Path("nightly.toml"), runs, "auditor").crontab_lines():
        subprocess.run(["/bin/sh", "-c", line.split(" ", 5)[5].replace(r"\%", "%")], check=True)
    assert [each.name for each in tmp_path.iterdir()] == ["runs"]
    log = (runs / "auditor.log").read_text()
    date = r".* UTC.*\n"
    commands = "run nightly.toml --resume --for 4h\n", f"prune {runs} --keep-days 30\n"
    assert re.fullmatch("".join(date + re.escape(command) for command in commands), log)


def test_a_unit_quotes_its_commands() -> None:
    lines = [line for line in schedule(ODD).service_unit().splitlines() if line.startswith("Exec")]
    odd = '/opt/100%% odd $$HOME/a\'b \\"c\\"'
    assert lines == [
        f'ExecStart="{odd}/auditor" run "{odd}/nightly.toml" --resume --for 4h',
        f'ExecStopPost="{odd}/auditor" prune "{odd}/runs" --keep-days 30',
    ]


@pytest.mark.parametrize(
    ("folder", "protected"), [("/srv/fleet", "yes"), ("/home/eu", "read-only"), ("/root/x", "read-only")]
)
def test_a_unit_writes_only_where_its_runs_are(folder: str, protected: str) -> None:
    unit = schedule(Path(folder)).service_unit()
    written = [
        line for line in unit.splitlines() if line.startswith(("ReadWritePaths=", "StateDirectory=", "BindPaths="))
    ]
    assert written == [f"ReadWritePaths={folder}/runs"]
    assert f"ProtectHome={protected}\n" in unit
    assert (
        "StateDirectory=auditor\n"
        in Schedule(Path("/a"), Path("/b"), Path("/var/lib/auditor/audits"), "auditor").service_unit()
    )
