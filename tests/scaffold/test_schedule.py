"""Units and crontab lines run the audit that was named, also with paths that need quoting."""

import shlex
import subprocess
from pathlib import Path

import pytest

from auditor.scaffold.schedule import Schedule

ODD = Path('/opt/100% odd $HOME/a\'b "c"')


def schedule(folder: Path, **keys: object) -> Schedule:
    return Schedule(folder / "auditor", folder / "nightly.toml", folder / "runs", "auditor", **keys)  # type: ignore[arg-type]


def test_a_crontab_line_runs_the_command_by_a_shell() -> None:
    line = schedule(ODD, time="03:05").crontab_line()
    minute, hour, *_, command = line.split(" ", 5)
    assert (minute, hour) == ("5", "3")
    assert "%" not in command.replace(r"\%", "")
    words = shlex.split(command.replace(r"\%", "%"))
    assert words[:5] == [str(ODD / "auditor"), "run", str(ODD / "nightly.toml"), "--resume", "--for"]


def test_a_crontab_line_logs_where_the_audit_can_write(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    line = Schedule(Path("/bin/echo"), Path("nightly.toml"), runs, "auditor").crontab_line()
    subprocess.run(["/bin/sh", "-c", line.split(" ", 5)[5].replace(r"\%", "%")], check=True)
    assert [each.name for each in tmp_path.iterdir()] == ["runs"]
    assert (runs / "auditor.log").read_text() == "run nightly.toml --resume --for 4h\n"


def test_a_unit_quotes_its_command() -> None:
    (line,) = (line for line in schedule(ODD).service_unit().splitlines() if line.startswith("ExecStart="))
    assert line == (
        'ExecStart="/opt/100%% odd $$HOME/a\'b \\"c\\"/auditor" run "/opt/100%% odd $$HOME/a\'b \\"c\\"/nightly.toml" --resume --for 4h'
    )


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
