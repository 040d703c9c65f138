"""Documents that queries write, and files that users write, are valid by the JSON Schemas that describe them."""

import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

import auditor
from auditor.hooks.payload import build_payload
from auditor.planning.capacity import plan_devices
from auditor.policy.evaluate import summarize_policy
from auditor.policy.loader import parse_policy
from auditor.policy.model import Policy
from auditor.storage.tables import ResultTable
from tests.runs.run_folders import edit_manifest, every_status, listed, named, ok, sampled

CONFIGS = Path(__file__).parents[2] / "configs"
RULES: dict[str, Any] = {
    "rule": [
        {"name": "minimum", "module": "ble", "minimum": "1.1"},
        {"name": "required", "module": "ble", "required": True},
        {"name": "newest", "module": "ble", "newest": "50%"},
        {"name": "deny", "deny": ["1.*"], "exception": [{"until": "2099-01-01", "reason": "test", "product": "p2"}]},
    ]
}


def validate(kind: str, document: object) -> None:
    schema = orjson.loads(resources.files("auditor").joinpath("schemas", f"{kind}.schema.json").read_bytes())
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(document)


def written(table: ResultTable, path: Path) -> Any:
    table.write(path, "json")
    return orjson.loads(path.read_bytes())


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Runs of one name: two complete ones and two samples."""
    fleet = [named(number) for number in range(40)]
    versions = [ok(device, ("ble", str(number % 3))) for number, device in enumerate(fleet[:20])]
    folders = [
        every_status(tmp_path / "runs" / "1").folder,
        listed(tmp_path / "runs" / "2").folder,
        sampled(tmp_path / "runs" / "3", fleet, fleet[:20], versions).folder,
        sampled(tmp_path / "runs" / "4", fleet, fleet[:18], versions[:18]).folder,
    ]
    for day, folder in enumerate(folders, 1):
        started = f"2026-11-0{day}T00:00:00.000Z"
        edit_manifest(folder, partial(replace, started_at=started))
    return folders


@pytest.mark.parametrize("first", [0, 2])
def test_a_diff_is_valid(runs: list[Path], tmp_path: Path, first: int) -> None:
    with auditor.diff_runs(runs[first], runs[first + 1]) as drift:
        for table in (drift.modules, drift.devices, *(() if drift.shares is None else (drift.shares.table,))):
            validate("diff", written(table, tmp_path / "diff.json"))
        assert (drift.shares is not None) == (first == 2)


def test_a_history_is_valid(runs: list[Path], tmp_path: Path) -> None:
    with auditor.read_history(runs[0].parent) as history:
        document = written(history.table, tmp_path / "history.json")
    assert len(document["runs"]) == 4
    validate("history", document)


@pytest.mark.parametrize("number", [0, 3])
def test_a_policy_result_and_a_webhook_body_are_valid(runs: list[Path], tmp_path: Path, number: int) -> None:
    policy = Policy(parse_policy(RULES, "rules.toml"), "rules.toml")
    now = datetime(2026, 11, 22, tzinfo=UTC)
    with auditor.evaluate_policy(runs[number], policy, now=now) as report:
        for table in (report.table, report.violations):
            validate("policy", written(table, tmp_path / "policy.json"))
    summary = summarize_policy(runs[number], policy, now=now)
    payload = build_payload(runs[number], exit_code=4, policy=summary, problems=["no room"])
    event = orjson.loads(payload.render_event(payload.message.render()))
    assert event["data"]["policy"]["rules"]
    assert event["data"]["drift"] is None or event["data"]["drift"]["since"] == "3"
    validate("webhook", event)


def test_a_plan_is_valid() -> None:
    settings = auditor.load_settings(CONFIGS / "tuya.toml")
    plan = plan_devices(settings, {account.name: 1_000 for account in settings.account}, None, window=60.0)
    validate("plan", orjson.loads(orjson.dumps(plan)))


@pytest.mark.parametrize("name", ["tuya", "alibaba", "cron"])
def test_settings_are_valid(name: str) -> None:
    validate("settings", tomllib.loads((CONFIGS / f"{name}.toml").read_text()))


def test_rules_are_valid() -> None:
    table = tomllib.loads((CONFIGS / "rules.toml").read_text(), parse_float=float)
    validate("rules", orjson.loads(orjson.dumps(table)))


@pytest.mark.parametrize(("kind", "document"), [("settings", {"accounts": []}), ("rules", {"rule": [{"nam": "x"}]})])
def test_an_unknown_key_is_refused(kind: str, document: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validate(kind, document)
