"""QueryDeviceBySQL of the simulated platform, compared with DuckDB over the same devices."""

import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from auditor.simulator.registry import Churn, Registry, device_record
from auditor.simulator.responses import RequestRejected
from auditor.simulator.search.device_index import DeviceIndex, format_date
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.world import World
from tests.database import connect

WORLD = World(600, missing=0.1, silent=0.1, inactive=0.1, products=5)
PARTS = {"ota_module.name": "modules", "ota_module.version": "modules", "tag.tag_name": "tags", "tag.tag_value": "tags"}


def index_of(world: World = WORLD, options: IndexOptions | None = None) -> DeviceIndex:
    registry = Registry(world)
    registry.advance(0.0)
    return DeviceIndex(registry, options or IndexOptions())


def search(index: DeviceIndex, sql: str) -> list[str]:
    data: Any = index.answer({"SQL": sql})["data"]
    return [row["iotId"] for row in data]


@pytest.fixture(scope="module")
def oracle() -> Iterator[Any]:
    rows = []
    for device in WORLD:
        if device.exists:
            record = device_record(device, WORLD.began)
            modules = [{"name": each.module_name, "version": each.module_version} for each in device.modules]
            tags = [{"tag_name": name, "tag_value": value} for name, value in device.tags.items()]
            dates: dict[str, int | None] = {"gmt_create": record.created, "gmt_modified": record.modified}
            dates["active_time"] = record.created + 60_000 if device.activated else None
            rows.append({
                "product_key": device.product_key, "iot_id": device.iot_id, "name": device.device_name,
                "nickname": device.nickname, "status": record.status, "modules": modules, "tags": tags,
                "groups": [{"group_id": group} for group in device.groups],
                **{name: None if each is None else format_date(each) for name, each in dates.items()},
            })  # fmt: skip
    database = connect()
    database.execute("CREATE TEMP TABLE oracle AS SELECT unnest(from_json($1, $2), recursive := false) AS row", [
        json.dumps(rows),
        json.dumps([{**dict.fromkeys(rows[0], "VARCHAR"), "modules": [{"name": "VARCHAR", "version": "VARCHAR"}],
                     "tags": [{"tag_name": "VARCHAR", "tag_value": "VARCHAR"}], "groups": [{"group_id": "VARCHAR"}]}]),
    ])  # fmt: skip
    yield database
    database.execute("DROP TABLE oracle")


def expected(oracle: Any, conditions: list[list[tuple[str, str, str]]]) -> set[str]:
    def condition(field: str, operator: str, value: str, source: str = "row.") -> str:
        quoted = "'" + value.replace("'", "''") + "'"
        if operator == "LIKE":
            return f"starts_with({source}{field}, '{value.removesuffix('%')}')"
        return f"{source}{field} {operator} {quoted}"

    def all_of(group: list[tuple[str, str, str]]) -> str:
        parts: dict[str, list[str]] = {}
        for field, operator, value in group:
            if "." in field:
                inner = condition(field.partition(".")[2], operator, value, "part.")
                parts.setdefault(PARTS.get(field, "groups"), []).append(inner)
        nested = [
            f"len(list_filter(row.{name}, lambda part: {' AND '.join(each)})) > 0" for name, each in parts.items()
        ]
        return " AND ".join([condition(*each) for each in group if "." not in each[0]] + nested)

    where = " OR ".join(f"({all_of(group)})" for group in conditions)
    return {iot_id for (iot_id,) in oracle.execute(f"SELECT row.iot_id FROM oracle WHERE {where}").fetchall()}


def random_condition(source: random.Random) -> tuple[str, str, str]:
    device = WORLD.device(source.randrange(600))
    record = device_record(device, WORLD.began)
    field = source.choice([
        "product_key", "name", "nickname", "status", "gmt_create", "gmt_modified", "active_time", "ota_module.name",
        "ota_module.version", "tag.tag_name", "tag.tag_value", "group.group_id",
    ])  # fmt: skip
    module = source.choice(device.modules or WORLD.device(3).modules or [None])
    values = {
        "product_key": device.product_key, "name": device.device_name, "nickname": device.nickname or "Unit 3",
        "status": record.status, "gmt_create": format_date(record.created), "tag.tag_value": "site-2",
        "gmt_modified": format_date(record.modified), "active_time": format_date(record.created + 60_000),
        "ota_module.name": "default" if module is None else module.module_name, "tag.tag_name": "site",
        "ota_module.version": "1" if module is None else module.module_version, "group.group_id": "group1",
    }  # fmt: skip
    if field in {"gmt_create", "gmt_modified", "active_time"}:
        return field, source.choice(["=", "<", ">"]), values[field]
    if source.random() < 0.4:
        return field, "LIKE", values[field][: source.randrange(1, 9)] + "%"
    return field, "=", values[field]


@pytest.mark.parametrize("seed", range(20))
def test_random_statements_find_what_a_database_finds(oracle: Any, seed: int) -> None:
    source = random.Random(seed)
    total, groups = source.randrange(1, 6), []
    while total:
        size = source.randrange(1, total + 1)
        groups.append([random_condition(source) for _ in range(size)])
        total -= size
    where = " OR ".join(" AND ".join(f'{f} {o} "{v}"' for f, o, v in group) for group in groups)
    index, wanted = index_of(), expected(oracle, groups)
    if len(where) < 330:
        assert index.answer({"SQL": f"SELECT count(*) FROM device WHERE {where}"}) == {"totalCount": len(wanted)}
        found = [
            iot_id
            for first in range(0, len(wanted) + 1, 50)
            for iot_id in search(index, f"SELECT * FROM device WHERE {where} ORDER BY gmt_create LIMIT {first}, 50")
        ]
        assert sorted(found) == sorted(wanted)


def test_rows_are_sorted_by_the_requested_date_only() -> None:
    index, key = index_of(), WORLD.product_keys[0]
    for field, member in (("gmt_create", "gmtCreate"), ("gmt_modified", "gmtModified"), ("active_time", "activeTime")):
        data: Any = index.answer({"SQL": f'SELECT * FROM device WHERE product_key = "{key}" AND status = "ONLINE" ORDER BY {field} LIMIT 50'})["data"]  # fmt: skip
        assert [row[member] for row in data] == sorted(row[member] for row in data)
    unsorted: Any = index.answer({"SQL": f'SELECT * FROM device WHERE product_key = "{key}" LIMIT 50'})["data"]
    assert [row["gmtCreate"] for row in unsorted] != sorted(row["gmtCreate"] for row in unsorted)


@pytest.mark.slow
def test_an_index_that_lags_has_the_versions_of_then() -> None:
    churn = Churn(changes_per_hour=0.02)
    world = World(20_000, products=1, missing=0, silent=0, inactive=0, large=0)
    registry = Registry(world, churn)
    registry.advance(1_000.0)
    stale = sum(registry.modules(device, 3600.0) != registry.modules(device) for device in world)
    assert 320 < stale < 480
    assert all(registry.modules(device) == device.modules for device in list(world)[:500])
    registry.advance(1_000.0 + 3600.0)
    changed = sum(registry.modules(device) != device.modules for device in world)
    assert 320 < changed < 480


def test_other_regions_and_instances_are_refused() -> None:
    sql = {"SQL": 'SELECT count(*) FROM device WHERE name LIKE "a%"'}
    for index, region in (
        (index_of(), "eu-central-1"),
        (index_of(options=IndexOptions(is_refused=True)), "cn-shanghai"),
    ):
        with pytest.raises(RequestRejected):
            index.answer({**sql, "RegionId": region})
    assert index_of().answer({**sql, "RegionId": "cn-shanghai"}) == {"totalCount": 0}
