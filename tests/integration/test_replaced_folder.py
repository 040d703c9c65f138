"""Another user who owns the directory of runs replaces the folder of a run while it is written; needs root."""

import os
import shutil
from pathlib import Path

import pytest

import auditor
from auditor.simulator.server import Simulator
from tests.integration.audits import plain_world, settings_at
from tests.other_user import OTHER_USER, needs_root

pytestmark = pytest.mark.anyio

SEALING_FILES = ("modules.parquet", "devices.parquet", "lines.parquet", "failures.parquet", "inventory.json")


@needs_root
async def test_a_replaced_run_folder_stops_the_audit_and_no_link_in_it_is_followed(tmp_path: Path) -> None:
    audits, precious = tmp_path / "audits", tmp_path / "bashrc"
    precious.write_text("mine")
    audits.mkdir()
    os.chown(audits, OTHER_USER, OTHER_USER)
    replaced: list[Path] = []

    def replace(_: auditor.Progress) -> None:
        for folder in () if replaced else audits.glob("2*"):
            replaced.append(shutil.copytree(folder, audits / "copy"))
            folder.rename(audits / "moved")
            (audits / "copy").rename(folder)
            (folder / ".sealing").mkdir(exist_ok=True)
            for name in (*SEALING_FILES, ".run.json.new", "devices.parquet"):
                for path in (folder / name, folder / ".sealing" / name):
                    path.unlink(missing_ok=True)
                    path.symlink_to(precious)
            for path in (folder, *folder.rglob("*")):
                os.chown(path, OTHER_USER, OTHER_USER, follow_symlinks=False)

    world = plain_world(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_at(tmp_path, platform)
        result = await auditor.run_audit(settings, directory=audits, on_progress=replace)
    assert replaced
    assert result.exit_code == 3
    assert "was replaced by another folder while this run was written" in str(result.manifest.error)
    assert precious.read_text() == "mine"
    assert len((audits / "moved" / "devices.jsonl").read_bytes().splitlines()) == 40  # no answer is lost
