"""The units of deploy/systemd are valid, hardened, and those that the program writes."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "systemd"
MAX_EXPOSURE = 2.5

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def analyze(*words: str | Path) -> str:
    ended = subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def test_the_units_are_those_that_the_program_writes() -> None:
    subprocess.run([sys.executable, ROOT / "release" / "units.py", "--check"], check=True)


@needs_systemd
def test_systemd_finds_nothing_wrong_in_the_units(tmp_path: Path) -> None:
    for path in FOLDER.iterdir():
        (tmp_path / path.name).write_text(path.read_text().replace("/opt/auditor/bin/auditor", "/bin/true"))
    assert analyze("verify", tmp_path / "auditor.service", tmp_path / "auditor.timer") == ""


@needs_systemd
def test_the_service_is_hardened() -> None:
    said = analyze("security", "--offline=true", f"--threshold={int(MAX_EXPOSURE * 10)}", FOLDER / "auditor.service")
    exposure = re.search(r"Overall exposure level for auditor.service: ([\d.]+)", said)
    assert exposure is not None
    assert float(exposure[1]) <= MAX_EXPOSURE
