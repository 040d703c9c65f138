import copy
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from auditor.models import Device
from auditor.runs.folder import FAILURES, INVENTORY_JSON, PRODUCTS, RESULTS
from auditor.runs.journal import encode_outcome
from auditor.runs.manifest import MANIFEST
from tests.runs.run_folders import (
    HOSTILE,
    build,
    edit_manifest,
    every_status,
    failed,
    listed,
    named,
    not_found,
    ok,
    running,
)

KINDS = ["run", "device", "failure", "inventory", "product"]
DOCUMENTS = [
    *KINDS,
    "plan",
    "diff",
    "changes",
    "progress",
    "runs",
    "timeline",
    "policy",
    "history",
    "rollouts",
    "webhook",
    "settings",
    "rules",
]
OPTIONAL: dict[str, set[str]] = {
    "inventory": {
        "modules",
        "warnings",
        "modules_missing",
        "carried",
        "oldest_answer_at",
        "unsampled",
        "sample",
        "low",
        "high",
    },
    "device": {"reason"},
    "progress": {"trace_id", "span_id"},
}
"""Of an inventory whose files are not those that were sealed, whose products are known, or that is not of devices that
were all asked; and of an empty device."""

LIMITS = {"low", "high"}
"""Of a row."""


def schema(kind: str) -> Any:
    """A schema as the installed package ships it."""
    return orjson.loads(resources.files("auditor").joinpath("schemas", f"{kind}.schema.json").read_bytes())


def faults(kind: str, record: object) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema(kind)).iter_errors(record)]


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_schema_is_valid_and_describes_every_key(kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(kind))
    for described in [schema(kind), *schema(kind).get("$defs", {}).values()]:
        assert described["additionalProperties"] is False
        assert described["description"]
        for name, value in described["properties"].items():
            assert value.get("description") or "const" in value, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_required_unless_it_is_optional(kind: str) -> None:
    for described in [schema(kind), *schema(kind).get("$defs", {}).values()]:
        optional = OPTIONAL.get(kind, set())
        # What a row may lack, an interval has.
        optional = optional - LIMITS if "low" in described["required"] else optional
        assert described["required"] == [name for name in described["properties"] if name not in optional]


def test_the_schemas_are_those_that_the_types_give() -> None:
    script = Path(__file__).parents[2] / "docs" / "schemas.py"
    done = subprocess.run([sys.executable, script, "--check"], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_package_holds_these_schemas_and_no_other() -> None:
    folder = resources.files("auditor").joinpath("schemas")
    names = sorted(file.name for file in folder.iterdir() if file.name != "tables.json")  # not a schema: columns
    assert names == sorted(f"{kind}.schema.json" for kind in DOCUMENTS)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["auditor"]


def records(folder: Path) -> dict[str, list[Any]]:
    return {
        "run": [orjson.loads((folder / MANIFEST).read_bytes())],
        "device": [orjson.loads(line) for line in (folder / RESULTS).read_bytes().splitlines()],
        "failure": [orjson.loads(line) for line in (folder / FAILURES).read_bytes().splitlines()],
        "inventory": [orjson.loads((folder / INVENTORY_JSON).read_bytes())],
        "product": [orjson.loads(line) for line in _lines(folder / PRODUCTS)],
    }


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


def test_what_a_run_writes_is_valid(tmp_path: Path) -> None:
    hostile = [named(number) for number in range(len(HOSTILE))]
    for folder in (
        every_status(tmp_path / "mixed").folder,
        listed(tmp_path / "listed").folder,
        build(tmp_path / "complete", [named(0), named(1)], [ok(named(0), ("ble", "1")), not_found(named(1))]).folder,
        build(tmp_path / "hostile", hostile, [ok(d, ("ble", HOSTILE[n])) for n, d in enumerate(hostile)]).folder,
        build(tmp_path / "nothing", [named(0)], []).folder,
    ):
        for kind, found in records(folder).items():
            assert [fault for record in found for fault in faults(kind, record)] == []


def test_the_keys_of_real_output_are_in_the_order_of_the_schema(tmp_path: Path) -> None:
    for kind, found in records(listed(tmp_path / "run").folder).items():
        assert found
        for record in found:
            assert list(record) == sorted(record, key=list(schema(kind)["properties"]).index) or kind == "run"
            assert set(record) | (OPTIONAL.get(kind, set()) - LIMITS) == set(schema(kind)["properties"])


def test_a_running_and_an_aborted_manifest_are_valid(tmp_path: Path) -> None:
    folder = running(tmp_path / "run", [named(0)], []).folder
    assert faults("run", orjson.loads((folder / MANIFEST).read_bytes())) == []
    edit_manifest(folder, lambda manifest: replace(manifest, state="aborted", error="disk full"))
    assert faults("run", orjson.loads((folder / MANIFEST).read_bytes())) == []


WRONG: list[tuple[str, str, Any]] = [
    ("run", "state", "done"),
    ("run", "schema_version", 1),
    ("run", "started_at", "2026-11-22 02:00"),
    ("run", "started_at", None),
    ("run", "devices", {"ok": 1}),
    ("run", "devices", {"ok": -1, "empty": 0, "not_found": 0, "failed": 0, "pending": 0}),
    ("run", "state", "complete"),  # with failed and pending devices
    ("run", "access_key_secret", "x"),
    ("run", "files", [{"name": "../x", "bytes": 1, "sha256": "0" * 64}]),
    ("run", "accounts", [{"name": "a", "endpoint": "e", "dialect": "tuya", "quota": 1, "secret": "s"}]),
    ("run", "planned", {"requests": 1, "seconds": 1.0}),
    ("run", "planned", {"requests": None, "seconds": None, "in_flight": None}),
    ("run", "rate", {"target": None, "achieved": 1.0}),
    ("device", "status", "failed"),
    ("device", "status", "empty"),  # with modules
    ("device", "modules", []),  # but ok
    ("device", "modules", [{"module_name": "ble"}]),
    ("device", "modules", [{"module_name": "", "module_version": "1"}]),
    ("device", "total", "2"),
    ("device", "total", 0),
    ("device", "attempts", 0),  # though it was asked
    ("device", "reason", "never_activated"),  # though it reported
    ("product", "modules", "ble"),
    ("product", "devices", None),
    ("run", "discovery", [{"account": "demo"}]),
    ("run", "never_activated", None),
    ("inventory", "modules_missing", [{"module_name": "ble"}]),
    ("device", "audited_at", "2026-11-22T02:00:03Z"),
    ("device", "device_name", None),  # then nothing names it
    ("device", "device_secret", "x"),
    ("failure", "status", "ok"),
    ("failure", "code", None),
    ("failure", "http_status", "500"),
    ("failure", "failed_at", 5),
    ("failure", "product_key", None),
    ("inventory", "complete", True),  # with failed and pending devices
    ("inventory", "inventory", [{"module_name": "ble"}]),
    ("inventory", "inventory", None),
]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = listed(tmp_path_factory.mktemp("schemas") / "run").folder
    return {kind: found[0] for kind, found in records(folder).items()}


@pytest.mark.parametrize(("kind", "key", "value"), WRONG)
def test_a_wrong_value_is_refused(honest: dict[str, Any], kind: str, key: str, value: Any) -> None:
    assert faults(kind, honest[kind]) == []
    assert faults(kind, honest[kind] | {key: value})


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_key_is_refused(honest: dict[str, Any], kind: str) -> None:
    for key in honest[kind].keys() - OPTIONAL.get(kind, set()):
        record = copy.deepcopy(honest[kind])
        del record[key]
        assert faults(kind, record), key


def test_a_complete_inventory_must_be_marked_complete(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    table = orjson.loads((folder / INVENTORY_JSON).read_bytes())
    assert faults("inventory", table) == []
    assert faults("inventory", table | {"complete": False})


def test_a_device_named_by_its_iot_id_alone_is_valid() -> None:
    device = Device("demo", None, None, "iot1")
    assert faults("device", orjson.loads(encode_outcome(ok(device, ("ble", ""))))) == []
    assert faults("failure", orjson.loads(encode_outcome(failed(device)))) == []
