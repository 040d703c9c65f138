"""What is said beside data, and never among them; what is not of a whole fleet; and what must not be written to."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from auditor.runs.manifest import MANIFEST, Manifest
from tests.cli.conftest import Auditor
from tests.runs.run_folders import build, edit_manifest, every_status, named, ok


def limited(manifest: Manifest) -> Manifest:
    return replace(manifest, fleet=replace(manifest.fleet, limit=manifest.fleet.devices))


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A complete run of the first two devices of a fleet."""
    devices = [named(0), named(1)]
    run = build(tmp_path / "runs" / "sample", devices, [ok(each, ("ble", "1.0")) for each in devices]).folder
    edit_manifest(run, limited)
    return run


@pytest.mark.parametrize(
    "words", ["inventory RUN", "devices RUN", "history DIR --format csv", "report RUN -o page.html"]
)
def test_a_run_of_a_part_of_a_fleet_says_so(auditor: Auditor, sample: Path, words: str) -> None:
    done = auditor(*({"RUN": sample, "DIR": sample.parent}.get(word, word) for word in words.split()))
    assert done.returncode == 0
    assert "is of the first 2 devices of its fleet alone (--limit)" in done.stderr


def test_a_run_of_a_part_of_a_fleet_is_not_the_last_whole_one(auditor: Auditor, sample: Path) -> None:
    whole = build(sample.parent / "whole", [named(0)], [ok(named(0), ("ble", "1.0"))]).folder
    edit_manifest(whole, lambda manifest: replace(manifest, started_at="2026-11-20T02:00:00.000Z"))
    done = auditor("prune", sample.parent, "--keep", 1)
    assert done.returncode == 0, done.stderr
    assert whole.is_dir()
    assert sample.is_dir()
    assert 'kind="incomplete",run="nightly"} 1.0' in auditor("metrics", sample).stdout


def test_a_limit_that_a_fleet_does_not_reach_is_none(auditor: Auditor, sample: Path) -> None:
    edit_manifest(sample, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=3)))
    assert auditor("inventory", sample).stderr == ""


def test_a_run_that_is_passed_over_is_told_beside_the_data(auditor: Auditor, sample: Path) -> None:
    shutil.copytree(sample, broken := sample.parent / "zzz")
    (broken / MANIFEST).write_text("{")
    done = auditor("inventory", sample.parent, "--format", "json")
    assert json.loads(done.stdout)["devices"]["ok"] == 2
    assert "a run is passed over" in done.stderr


@pytest.mark.parametrize(
    "words", ["inventory RUN -o OWN", "devices RUN -o OWN --format csv", "sql RUN FROM\tfleet -o OWN"]
)
@pytest.mark.parametrize("own", ["inventory.csv", "modules.parquet", "devices.jsonl"])
def test_a_file_of_a_run_is_not_written_over(auditor: Auditor, tmp_path: Path, words: str, own: str) -> None:
    run = every_status(tmp_path / "run").folder
    before = (run / own).read_bytes()
    done = auditor(*({"RUN": run, "OWN": run / own}.get(word, word.replace("\t", " ")) for word in words.split(" ")))
    assert done.returncode == 2
    assert "is a file of a run, which nothing may change" in done.stderr
    assert (run / own).read_bytes() == before


def test_a_run_is_not_compared_with_itself(auditor: Auditor, sample: Path) -> None:
    done = auditor("diff", sample, sample.parent)
    assert done.returncode == 2
    assert "is both the old run and the new one" in done.stderr


def test_a_rule_about_nothing_is_not_kept(auditor: Auditor, sample: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "r"\nmodule = "wifii"\nminimum = "1.0"\n')
    document = json.loads(auditor("policy", sample, "rules.toml", "--format", "json").stdout)
    assert [result["verdict"] for result in document["results"]] == ["not_seen"]
    assert any("are its patterns right?" in doubt for doubt in document["doubts"])


def test_names_in_a_table_are_whole_where_nobody_reads_a_screen(auditor: Auditor, tmp_path: Path) -> None:
    device = replace(named(0), device_name="d" * 150)
    run = build(tmp_path / "run", [device], [ok(device, ("ble", "1.0"))]).folder
    assert "d" * 150 in auditor("devices", run).stdout
