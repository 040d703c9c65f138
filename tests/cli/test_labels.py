"""Notes beside data, never among them; labels of incomplete runs; and files that must not be overwritten."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

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
def test_an_incomplete_run_is_labelled(auditor: Auditor, sample: Path, words: str) -> None:
    done = auditor(*({"RUN": sample, "DIR": sample.parent}.get(word, word) for word in words.split()))
    assert done.returncode == 0
    assert "covers only the first 2 devices of its fleet (--limit)" in done.stderr


def test_an_incomplete_run_is_not_the_latest_complete_one(auditor: Auditor, sample: Path) -> None:
    whole = build(sample.parent / "whole", [named(0)], [ok(named(0), ("ble", "1.0"))]).folder
    edit_manifest(whole, lambda manifest: replace(manifest, started_at="2026-11-20T02:00:00.000Z"))
    done = auditor("prune", sample.parent, "--keep", 1)
    assert done.returncode == 0, done.stderr
    assert whole.is_dir()
    assert sample.is_dir()
    assert 'kind="incomplete",run="nightly"} 1.0' in auditor("metrics", sample).stdout


def test_a_limit_above_the_fleet_size_has_no_effect(auditor: Auditor, sample: Path) -> None:
    edit_manifest(sample, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=3)))
    assert auditor("inventory", sample).stderr == ""


def test_a_skipped_run_is_reported_beside_the_data(auditor: Auditor, sample: Path) -> None:
    shutil.copytree(sample, broken := sample.parent / "zzz")
    (broken / MANIFEST).write_text("{")
    done = auditor("inventory", sample.parent, "--format", "json")
    assert json.loads(done.stdout)["devices"]["ok"] == 2
    assert "run skipped" in done.stderr


@pytest.mark.parametrize(
    "words", ["inventory RUN -o OWN", "devices RUN -o OWN --format csv", "sql RUN FROM\tfleet -o OWN"]
)
@pytest.mark.parametrize("own", ["inventory.csv", "modules.parquet", "devices.jsonl"])
def test_a_file_of_a_run_is_not_overwritten(auditor: Auditor, tmp_path: Path, words: str, own: str) -> None:
    run = every_status(tmp_path / "run").folder
    before = (run / own).read_bytes()
    done = auditor(*({"RUN": run, "OWN": run / own}.get(word, word.replace("\t", " ")) for word in words.split(" ")))
    assert done.returncode == 2
    assert "is a file of a run and cannot be overwritten" in done.stderr
    assert (run / own).read_bytes() == before


def test_a_run_is_not_compared_with_itself(auditor: Auditor, sample: Path) -> None:
    done = auditor("diff", sample, sample.parent)
    assert done.returncode == 2
    assert "is both the old and the new run" in done.stderr


def test_a_rule_that_matches_nothing_is_not_compliant(auditor: Auditor, sample: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text('[[rule]]\nname = "r"\nmodule = "wifii"\nminimum = "1.0"\n')
    document = json.loads(auditor("policy", sample, "rules.toml", "--format", "json").stdout)
    assert [result["verdict"] for result in document["results"]] == ["not_seen"]
    assert any(warning["kind"] == "unmatched_rule" for warning in document["warnings"])


def test_names_in_a_piped_table_are_not_broken(auditor: Auditor, tmp_path: Path) -> None:
    device = structs.replace(named(0), device_name="d" * 150)
    run = build(tmp_path / "run", [device], [ok(device, ("ble", "1.0"))]).folder
    assert "d" * 150 in auditor("devices", run).stdout
