"""Products and the modules that they define: what devices never reported, and what a run tells of its listing."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from auditor.errors import RunFolderError, UsageError
from auditor.models import Device, DeviceResult, Outcome
from auditor.query.devices import select_devices
from auditor.query.filters import DeviceFilter
from auditor.query.run import Run
from auditor.query.sql import query_run
from auditor.runs.folder import FLEET, INVENTORY_JSON, PRODUCTS
from auditor.runs.manifest import DiscoveryInfo, Manifest, file_info, read_manifest
from auditor.runs.products import MODULES_JOURNAL, ProductInfo, ProductsFile, read_products
from auditor.runs.selection_info import GapInfo
from auditor.runs.verify import verify_run
from auditor.runs.views import define_live_views, define_products, define_sealed_views
from tests.runs.run_folders import (
    by_id,
    edit_manifest,
    every_status,
    failed,
    finish,
    listed,
    named,
    never_activated,
    not_found,
    ok,
    running,
)

Row = tuple[object, ...]


def product(key: str, modules: tuple[str, ...] | None, *, account: str = "demo") -> ProductInfo:
    return ProductInfo(account, key, f"Product {key}", 5, 1, modules)


def made(folder: Path, fleet: Sequence[Device], outcomes: Sequence[Outcome], products: Sequence[ProductInfo]) -> Path:
    """A sealed run that knows of some products."""
    running(folder, fleet, outcomes)
    file = ProductsFile(folder)
    for account in dict.fromkeys(each.account for each in products):
        file.replace_products(account, [each for each in products if each.account == account])
    file.write()
    finish(folder)
    return folder


def query_rows(folder: Path, sql: str) -> list[Row]:
    with query_run(folder, sql) as answer:
        return list(answer.table)


def inventory_of(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = orjson.loads((folder / INVENTORY_JSON).read_bytes())
    return document


def lacking(folder: Path, **conditions: Any) -> list[Row]:
    """Device, status and module of each module that a device never reported."""
    with select_devices(folder, DeviceFilter(missing=True, **conditions)) as selected:
        rows = [tuple(row) for row in selected.table]
        assert selected.uncompared == 0
    assert all(row[6] is None for row in rows)
    return [(row[2] or row[3], row[4], row[5]) for row in rows]


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return listed(tmp_path_factory.mktemp("products") / "run").folder


@pytest.fixture
def folder(honest: Path, tmp_path: Path) -> Path:
    return shutil.copytree(honest, tmp_path / "run")


MISSING = [
    ("demo", "p1", "ble", 2, 4, 1),  # device 1 calls it BLE, device 4 failed
    ("demo", "p1", "default", 3, 4, 1),
    ("demo", "p1", "mcu", 4, 4, 1),
]


@pytest.mark.parametrize("define", [define_live_views, define_sealed_views])
def test_products_and_missing_modules_are_views(
    folder: Path, define: Callable[[duckdb.DuckDBPyConnection, Path], None]
) -> None:
    with duckdb.connect() as database:
        define(database, folder)
        define_products(database, folder)
        assert database.execute("FROM missing_modules").fetchall() == MISSING
        found = database.execute("FROM products ORDER BY product_key")
        assert [name for name, *_ in found.description or ()] == [
            "account", "product_key", "product_name", "device_count", "devices", "modules",
        ]  # fmt: skip
        assert found.fetchall() == [
            ("demo", "p1", "Product p1", 5, 5, ["ble", "default", "mcu"]),
            ("demo", "p2", "Product p2", 5, 1, None),
        ]


def test_a_run_without_products_has_both_views_without_rows(tmp_path: Path) -> None:
    built = every_status(tmp_path / "run")
    assert not (built.folder / PRODUCTS).exists()
    assert query_rows(built.folder, "SELECT count(*), count(modules) FROM products") == [(0, 0)]
    assert query_rows(built.folder, "FROM missing_modules") == []
    assert "modules_missing" not in inventory_of(built.folder)


def test_the_inventory_lists_missing_modules(folder: Path) -> None:
    keys = ["account", "product_key", "module_name", "devices", "answered", "never_activated"]
    assert inventory_of(folder)["modules_missing"] == [dict(zip(keys, row, strict=True)) for row in MISSING]
    with Run(folder) as run:
        run.write_inventory(folder.parent / "again.json", "json")
    assert orjson.loads((folder.parent / "again.json").read_bytes())["modules_missing"] == [
        dict(zip(keys, row, strict=True)) for row in MISSING
    ]


@pytest.mark.parametrize(("modules", "told"), [(None, None), ((), []), (("ble",), []), (("Ble",), [])])
def test_missing_modules_are_absent_if_unknown_and_empty_if_there_are_none(
    tmp_path: Path, modules: tuple[str, ...] | None, told: object
) -> None:
    folder = made(tmp_path / "run", [named(0)], [ok(named(0), ("ble", "1"))], [product("p1", modules)])
    assert inventory_of(folder).get("modules_missing") == told


def test_only_devices_of_the_same_account_and_product_can_miss_a_module(tmp_path: Path) -> None:
    fleet = [named(0), named(0, account="other"), named(0, product="p2")]
    outcomes = [ok(fleet[0], ("ble", "1")), ok(fleet[1]), ok(fleet[2])]
    products = [product("p1", ("ble",)), product("p3", ("ble",)), product("p1", ("mcu",), account="other")]
    folder = made(tmp_path / "run", fleet, outcomes, products)
    assert query_rows(folder, "FROM missing_modules") == [("other", "p1", "mcu", 1, 1, 0)]
    assert lacking(folder) == [("device0000", "empty", "mcu")]


def test_a_device_named_by_iot_id_misses_modules_of_its_product(tmp_path: Path) -> None:
    told = Device("demo", "p1", "device0001", "iot0001")
    fleet, products = [by_id(0), by_id(1), by_id(2)], [product("p1", ("ble", "mcu"))]
    folder = made(tmp_path / "run", fleet, [ok(fleet[0]), ok(fleet[1], ("ble", "1"), learnt=told)], products)
    assert query_rows(folder, "FROM missing_modules") == [("demo", "p1", "mcu", 1, 1, 0)]
    assert lacking(folder) == [("device0001", "ok", "mcu")]


MODULES = ("ble", "default", "mcu.2")
spelled = st.sampled_from([*MODULES, "BLE", "Default", "MCU.2", "extra"])


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[Device], list[Outcome], list[ProductInfo]]:
    """Devices of two products in every state, reporting modules in any letter case, each once."""
    fleet = [named(at, product=draw(st.sampled_from(["p1", "p2"]))) for at in range(draw(st.integers(3, 13)))]
    outcomes: list[Outcome] = []
    for device in fleet:
        match draw(st.sampled_from(["ok", "ok", "empty", "never", "not_found", "failed", "pending"])):
            case "ok":
                reported = draw(st.lists(spelled, min_size=1, max_size=3, unique_by=str.lower))
                outcomes.append(ok(device, *((name, "1") for name in reported)))
            case "empty":
                outcomes.append(ok(device))
            case "never":
                outcomes.append(never_activated(device))
            case "not_found":
                outcomes.append(not_found(device))
            case "failed":
                outcomes.append(failed(device))
    defined = st.none() | st.lists(spelled, max_size=3, unique_by=str.lower).map(tuple)
    products = [product(key, draw(defined)) for key in draw(st.sampled_from([[], ["p1"], ["p2", "p1"]]))]
    return fleet, outcomes, products


def never_reported(outcomes: Sequence[Outcome], products: Sequence[ProductInfo]) -> list[tuple[DeviceResult, str]]:
    """The oracle: devices that answered, with each module of their product that they do not report."""
    return [
        (outcome, module)
        for each in products
        for outcome in outcomes
        if isinstance(outcome, DeviceResult)
        and outcome.status != "not_found"
        and outcome.device.product_key == each.product_key
        for module in each.modules or ()
        if module.lower() not in {reported.module_name.lower() for reported in outcome.modules}
    ]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(built=answers())
@example(([named(0)], [ok(named(0), ("BLE", "1"))], [product("p1", ("ble", "Default"))]))
@example(([named(0), named(1)], [never_activated(named(0)), failed(named(1))], [product("p1", ("ble",))]))
@example(([named(0)], [not_found(named(0))], [product("p1", ("ble",))]))
@pytest.mark.slow
def test_missing_modules_are_those_that_plain_python_finds(
    built: tuple[list[Device], list[Outcome], list[ProductInfo]],
) -> None:
    fleet, outcomes, products = built
    pairs = never_reported(outcomes, products)
    known = any(each.modules is not None for each in products)
    expected = []
    for each in products:
        of_product = [
            outcome
            for outcome in outcomes
            if isinstance(outcome, DeviceResult)
            and outcome.status != "not_found"
            and outcome.device.product_key == each.product_key
        ]
        never = sum(outcome.reason == "never_activated" for outcome in of_product)
        for module in each.modules or ():
            without = sum(pair[1] == module and pair[0] in of_product for pair in pairs)
            if without:
                expected.append(("demo", each.product_key, module, without, len(of_product), never))
    with tempfile.TemporaryDirectory() as made_here:
        folder = made(Path(made_here, "run"), fleet, outcomes, products)
        missing = inventory_of(folder).get("modules_missing")
        assert (missing is None) is not known
        assert sorted(tuple(row.values()) for row in missing or ()) == sorted(expected)
        assert verify_run(folder) == []
        if known:
            assert sorted(lacking(folder)) == sorted(
                (str(outcome.device.device_name), outcome.status, module) for outcome, module in pairs
            )


def test_devices_are_filtered_by_missing_modules(folder: Path) -> None:
    assert lacking(folder, module="BLE") == [("device0002", "empty", "ble"), ("device0003", "empty", "ble")]
    assert lacking(folder, name="device0000") == [("device0000", "ok", "mcu")]
    assert lacking(folder, status="ok", module="default") == [("device0001", "ok", "default")]
    assert lacking(folder, product="p2") == []
    assert lacking(folder, status="failed") == []
    assert len(lacking(folder)) == sum(int(row[3]) for row in MISSING)
    with select_devices(folder, DeviceFilter(missing=True, limit=2)) as selected:
        assert (len(list(selected.table)), selected.rows) == (2, 9)


def test_devices_of_a_running_audit_are_filtered_by_missing_modules(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: replace(manifest, state="running"))
    assert lacking(folder, module="ble") == [("device0002", "empty", "ble"), ("device0003", "empty", "ble")]


@pytest.mark.parametrize(
    "conditions", [{"version": "1"}, {"module": "ble", "below": "1"}, {"module": "ble", "above": "1"}]
)
def test_a_filter_for_missing_modules_has_no_version(conditions: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="has no version"):
        DeviceFilter(missing=True, **conditions)


@pytest.mark.parametrize("products", [[], [product("p1", None)]])
def test_a_filter_for_missing_modules_needs_products_with_modules(tmp_path: Path, products: list[ProductInfo]) -> None:
    folder = made(tmp_path / "run", [named(0)], [ok(named(0))], products)
    with pytest.raises(UsageError, match="set fetch_product_modules"):
        lacking(folder)


def test_a_query_reads_products_and_missing_modules_and_no_other_file(folder: Path) -> None:
    joined = (
        "SELECT product_name, module_name, m.devices FROM missing_modules m JOIN products USING (account, product_key) "
        "WHERE m.devices = answered"
    )
    assert query_rows(folder, joined) == [("Product p1", "mcu", 4)]
    assert query_rows(folder, "SELECT product_key FROM products WHERE list_contains(modules, 'mcu')") == [("p1",)]
    assert query_rows(folder, "SELECT device_name FROM devices WHERE reason = 'never_activated'") == [("device0003",)]
    for beyond in (f"FROM read_text('{folder / PRODUCTS}')", f"FROM '{folder / PRODUCTS}'"):
        with pytest.raises(UsageError):
            query_rows(folder, beyond)


def test_products_are_read_back_as_they_were_written(folder: Path) -> None:
    assert read_products(folder / PRODUCTS) == [
        ProductInfo("demo", "p1", "Product p1", 5, 5, ("ble", "default", "mcu")),
        ProductInfo("demo", "p2", "Product p2", 5, 1, None),
    ]
    assert read_products(folder / "none.jsonl") == []
    (folder / PRODUCTS).write_bytes(b'{"account": 1}\n')
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_products(folder / PRODUCTS)


def cover_up(folder: Path) -> None:
    """Lists the files as they are now: what a forger who knows of digests does."""
    edit_manifest(
        folder,
        lambda manifest: replace(
            manifest,
            fleet=replace(manifest.fleet, sha256=file_info(folder / FLEET).sha256),
            files=tuple(file_info(folder / facts.name) for facts in manifest.files),
        ),
    )


def change_products(folder: Path) -> None:
    path = folder / PRODUCTS
    path.write_bytes(path.read_bytes().replace(b'"mcu"', b'"wifi"'))


def test_an_unchanged_run_of_a_discovered_fleet_verifies(folder: Path) -> None:
    assert verify_run(folder) == []
    assert PRODUCTS in {facts.name for facts in read_manifest(folder).files}


def test_verify_reports_changed_products(folder: Path) -> None:
    change_products(folder)
    assert f"{PRODUCTS}: is not the file that was sealed (its digest differs)" in verify_run(folder)
    cover_up(folder)
    assert [problem.partition(":")[0] for problem in verify_run(folder)] == [INVENTORY_JSON]


def test_verify_reports_deleted_and_added_products(folder: Path, tmp_path: Path) -> None:
    (folder / PRODUCTS).rename(tmp_path / "moved.jsonl")
    assert f"{PRODUCTS}: is missing" in verify_run(folder)
    without = every_status(tmp_path / "without").folder
    shutil.copyfile(tmp_path / "moved.jsonl", without / PRODUCTS)
    assert f"{PRODUCTS}: is not listed in the manifest" in verify_run(without)


@pytest.mark.parametrize("number", [0, 2])
def test_verify_reports_a_wrong_number_of_never_activated_devices(folder: Path, number: int) -> None:
    edit_manifest(folder, lambda manifest: replace(manifest, never_activated=number))
    (problem,) = verify_run(folder)
    assert f"says that {number} devices were never activated" in problem


@pytest.mark.parametrize("statuses", [{}, {"": 5}, {"ONLINE": 6}, {"": 6, "ONLINE": 1}])
def test_verify_reports_wrong_statuses(folder: Path, statuses: dict[str, int]) -> None:
    def lie(manifest: Manifest) -> Manifest:
        return replace(manifest, discovery=tuple(replace(each, statuses=statuses) for each in manifest.discovery))

    edit_manifest(folder, lie)
    (problem,) = verify_run(folder)
    assert problem.startswith(f'{FLEET}: its devices of account "demo" are not those')


def test_verify_does_not_check_the_statuses_of_a_pending_discovery(folder: Path) -> None:
    pending = DiscoveryInfo("demo")
    edit_manifest(folder, lambda manifest: replace(manifest, discovery=(pending,)))
    assert verify_run(folder) == []


def details_with(folder: Path, *facts: DiscoveryInfo) -> tuple[str, ...]:
    """Return the warnings of a complete run with these discoveries; all readers agree."""
    edit_manifest(folder, lambda manifest: replace(manifest, discovery=facts))
    with Run(folder) as run, select_devices(folder) as selected:
        assert selected.run.warnings == run.warnings
        return tuple(warning.detail for warning in run.warnings)


def test_a_run_whose_discovery_has_gaps_or_is_pending_has_warnings(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", [named(0)], [ok(named(0))], [])
    gaps = tuple(GapInfo(f"p{at}", at, 1_000 + at, None, None if at else "iot.odd: No.") for at in range(5))
    assert details_with(folder) == ()
    assert details_with(folder, DiscoveryInfo("demo", "complete", 1, 1)) == ()
    assert details_with(folder, DiscoveryInfo("demo", "pending")) == ('account "demo": its device list is incomplete',)
    (gap,) = details_with(folder, DiscoveryInfo("demo", "partial", gap_count=1, gaps=gaps[:1]))
    assert all(part in gap for part in ('account "demo"', "product p0", "0 of 1,000 devices", "iot.odd: No."))
    many = details_with(
        folder, DiscoveryInfo("demo", "partial", gap_count=250, gaps=gaps), DiscoveryInfo("eu", "pending")
    )
    assert len(many) == 5
    assert "247 more products" in many[3]
    assert '"eu"' in many[4]


def test_a_gap_shows_the_larger_of_two_reported_numbers() -> None:
    assert str(GapInfo("p", 1, 3, 7)) == "a gap: product p: 1 of 7 devices listed"
    assert str(GapInfo("p", 1_000, 2_000, None, "why")) == "a gap: product p: 1,000 of 2,000 devices listed (why)"
    assert str(GapInfo("p", 1, None, None, "why")) == "a gap: product p: 1 devices listed (why)"
    assert str(GapInfo(None, 20, 21, None)) == "a gap: 20 of 21 products listed"


def doubled(path: Path) -> None:
    path.write_bytes(2 * path.read_bytes())


@pytest.mark.parametrize("change", [doubled, Path.unlink])
def test_products_that_were_changed_or_deleted_since_cause_warnings(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    folder = listed(tmp_path / "run").folder
    with Run(folder) as run:
        before = run.warnings
    change(folder / "products.jsonl")
    with Run(folder) as run:
        (warning,) = set(run.warnings) - set(before)
    assert "products.jsonl" in warning.detail


def test_fetched_modules_survive_a_kill_and_are_fetched_once(tmp_path: Path) -> None:
    listed_products = [product("k1", None), product("k2", None), product("k3", None)]
    file = ProductsFile(tmp_path)
    file.replace_products("demo", listed_products)
    file.set_modules("demo", "k1", ("default", "ble"))
    file.set_modules("demo", "k2", ("default",))
    # Killed here; the platform lists one more product since.
    resumed = ProductsFile(tmp_path)
    resumed.replace_products("demo", [*listed_products, product("k4", None)])
    assert resumed.products_without_modules("demo") == ["k3", "k4"]
    resumed.set_modules("demo", "k3", ("x",))
    resumed.finish()
    modules = {row.product_key: row.modules for row in read_products(tmp_path / PRODUCTS)}
    assert modules == {"k1": ("default", "ble"), "k2": ("default",), "k3": ("x",), "k4": None}
    assert [path.name for path in tmp_path.iterdir()] == [PRODUCTS]


@pytest.mark.parametrize("end", [b'{"account": "de', b"\0\0\0\n", b"[]\n", b'{"account": "demo"}\n'])
def test_a_journal_of_modules_is_cut_where_it_cannot_be_read(tmp_path: Path, end: bytes) -> None:
    file = ProductsFile(tmp_path)
    file.replace_products("demo", [product("k1", None), product("k2", None)])
    file.set_modules("demo", "k1", ("default",))
    journal = tmp_path / MODULES_JOURNAL
    kept = journal.read_bytes()
    journal.write_bytes(kept + end)
    resumed = ProductsFile(tmp_path)
    assert journal.read_bytes() == kept
    resumed.replace_products("demo", [product("k1", None), product("k2", None)])
    assert resumed.products_without_modules("demo") == ["k2"]


def test_a_journal_of_modules_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / MODULES_JOURNAL).symlink_to(tmp_path / "precious")
    with pytest.raises(RunFolderError, match="cannot be read"):
        ProductsFile(tmp_path / "run")
    assert (tmp_path / "precious").read_text() == "mine"
