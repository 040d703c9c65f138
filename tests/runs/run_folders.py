"""Run folders built from outcomes, the way an audit builds them: snapshot, journal, seal, manifest, proof."""

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import chain, repeat
from pathlib import Path

import orjson
from msgspec import structs

from auditor.fleet.table import FLEET_COLUMNS
from auditor.models import Device, DeviceFailure, DeviceResult, ModuleVersion, Outcome
from auditor.runs.folder import CARRIED, FAILURES, FLEET, RESULTS, SELECTED
from auditor.runs.inventory import read_aliases
from auditor.runs.journal import encode_outcome, replace_results
from auditor.runs.manifest import (
    AccountInfo,
    DeviceCounts,
    DiscoveryInfo,
    FleetInfo,
    Manifest,
    file_info,
    read_manifest,
    write_manifest,
)
from auditor.runs.products import ProductInfo, ProductsFile
from auditor.runs.seal import seal_run
from auditor.runs.selection_info import GapInfo, RequestCounts
from auditor.storage.database import sql_literal, sql_read_path
from auditor.text.formatting import format_utc
from tests.database import connect

START = 1_795_312_800.0
"""2026-11-22T02:00:00Z."""

HOSTILE = [
    'quo"te',
    "apo'strophe",
    "two\nlines",
    "carriage\rreturn",
    "nul\0inside",
    "\0",
    "\x1b[31mred\x1b[0m",
    "😀🔥",
    "a,b;c\td",
    "back\\slash",
    "\u202eright to left",
    "%s{0}$1",
    " led and trailed ",
    "=1+1",
    "+1",
    "-1",
    "@x",
    "",
]
"""What a device may call a version of its module."""


def named(number: int, *, account: str = "demo", product: str = "p1") -> Device:
    return Device(account, product, f"device{number:04}", None)


def by_id(number: int, *, account: str = "demo") -> Device:
    return Device(account, None, None, f"iot{number:04}")


def both(number: int, *, account: str = "demo", product: str = "p1") -> Device:
    return Device(account, product, f"device{number:04}", f"iot{number:04}")


def ok(device: Device, *modules: tuple[str, str], learnt: Device | None = None) -> DeviceResult:
    reported = tuple(ModuleVersion(*module) for module in modules)
    identity = learnt or device
    return DeviceResult(identity, "ok" if modules else "empty", reported, len(modules), 1, 1, "r-1", START + 3.123)


def not_found(device: Device) -> DeviceResult:
    return DeviceResult(device, "not_found", (), 0, 0, 1, "r-2", START + 4)


def failed(device: Device, code: str = "auditor.Timeout") -> DeviceFailure:
    return DeviceFailure(device, code, 'no "answer"\n', None, 5, None, START + 5)


@dataclass(frozen=True)
class Built:
    """A run folder, and the devices and outcomes that it was built from."""

    folder: Path
    fleet: Sequence[Device]
    outcomes: Sequence[Outcome]


def journal(folder: Path, outcomes: Iterable[Outcome]) -> None:
    with (folder / RESULTS).open("ab") as results, (folder / FAILURES).open("ab") as failures:
        for outcome in outcomes:
            (results if isinstance(outcome, DeviceResult) else failures).write(encode_outcome(outcome))


def write_fleet(path: Path, fleet: Sequence[Device], details: Sequence[Mapping[str, object]] = ()) -> None:
    """The file that ``write_snapshot`` would write, in a fraction of the time (a test compares them).

    ``details`` has further columns of each device, such as its attributes.
    """
    lines = path.with_suffix(".jsonl")
    further = chain(details, repeat({}))
    rows = (
        {"ordinal": n} | structs.asdict(d) | dict(more) for n, (d, more) in enumerate(zip(fleet, further, strict=False))
    )
    lines.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    columns = {"ordinal": "BIGINT"} | FLEET_COLUMNS
    source, target = sql_read_path(lines), sql_literal(path)
    with connect() as database:
        database.execute(
            f"COPY (FROM read_json({source}, columns = {columns}, hive_partitioning = false)) TO {target} (FORMAT parquet)"
        )
    lines.unlink()


def running(
    folder: Path,
    fleet: Sequence[Device],
    outcomes: Sequence[Outcome],
    *,
    name: str = "nightly",
    details: Sequence[Mapping[str, object]] = (),
) -> Built:
    """A run as it lies there before it is sealed; ``details`` as in ``write_fleet``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_fleet(folder / FLEET, fleet, details)
    accounts = dict.fromkeys(device.account for device in fleet)
    journal(folder, outcomes)
    write_manifest(
        folder,
        Manifest(
            auditor_version="0",
            name=name,
            state="running",
            started_at=format_utc(START),
            accounts=tuple(AccountInfo(account, "https://example.com/", "tuya", 10) for account in accounts),
            fleet=FleetInfo("fleet.jsonl", len(fleet), 0, file_info(folder / FLEET).sha256),
            devices=DeviceCounts(pending=len(fleet)),
        ),
    )
    return Built(folder, fleet, outcomes)


def finish(folder: Path) -> None:
    """Seals a run and states what it holds, as the end of an audit does."""
    sealed = seal_run(folder, modules=read_manifest(folder).modules)
    if sealed.compressed is not None:
        replace_results(folder, sealed.compressed)
    manifest = read_manifest(folder)
    manifest = replace(
        manifest,
        fleet=replace(manifest.fleet, **asdict(read_aliases(folder))),
        finished_at=format_utc(START + 60),
        state="complete" if sealed.devices.unanswered == 0 else "partial",
        devices=sealed.devices,
        never_activated=sealed.never_activated,
        failures=sealed.failures,
        files=sealed.files,
        carried=sealed.carried,
        unsampled=sealed.unsampled,
        oldest_answer_at=sealed.oldest_answer_at,
    )
    write_manifest(folder, manifest)


@cache
def _templates() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="runs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def build_once(folder: Path, key: object, make: Callable[[], object]) -> None:
    """Make a run, or a directory of runs, or copy what was made elsewhere for the same key: it is the same bytes again."""
    template = _templates() / hashlib.sha256(repr(key).encode("utf-8", "surrogatepass")).hexdigest()
    if template.exists() and not folder.exists():
        shutil.copytree(template, folder, copy_function=shutil.copy)
        return
    is_new = not template.exists() and not folder.exists()
    make()
    if is_new:
        shutil.copytree(folder, template, copy_function=shutil.copy)


def build(
    folder: Path,
    fleet: Sequence[Device],
    outcomes: Sequence[Outcome],
    *,
    details: Sequence[Mapping[str, object]] = (),
    afresh: bool = False,
) -> Built:
    """A sealed run; ``afresh``: it is sealed in this folder by this test, whose subject that is."""

    def make() -> None:
        running(folder, fleet, outcomes, details=details)
        finish(folder)

    if afresh:
        make()
    else:
        build_once(folder, ("run", fleet, outcomes, details), make)
    return Built(folder, fleet, outcomes)


def edit_manifest(folder: Path, change: Callable[[Manifest], Manifest]) -> None:
    write_manifest(folder, change(read_manifest(folder)))


def every_status(folder: Path, *, afresh: bool = False) -> Built:
    """A device in each state, two accounts."""
    fleet = [*(named(n) for n in range(8)), *(named(n, account="other", product="p2") for n in range(2))]
    outcomes: list[Outcome] = [
        ok(fleet[0], ("ble", "1.0"), ("default", "2.0")),
        ok(fleet[1], ("ble", "1.0")),
        ok(fleet[2], ("ble", "1.1"), ("=cmd", "@evil")),
        ok(fleet[3]),
        not_found(fleet[4]),
        failed(fleet[5]),
        failed(fleet[6], "iot.odd"),
        ok(fleet[8], ("ble", "9")),
    ]
    return build(folder, fleet, outcomes, afresh=afresh)


def never_activated(device: Device) -> DeviceResult:
    return DeviceResult(device, "empty", (), 0, 0, 0, None, START + 1, "never_activated")


def listed(folder: Path) -> Built:
    """A run whose fleet the platform listed: a device of each kind, products whose modules are known and are not."""
    fleet = [*(named(n) for n in range(5)), named(5, product="p2")]
    outcomes: list[Outcome] = [
        ok(fleet[0], ("ble", "1.0"), ("default", "2.0")),
        ok(fleet[1], ("BLE", "1.0")),
        ok(fleet[2]),
        never_activated(fleet[3]),
        failed(fleet[4]),
        ok(fleet[5], ("ble", "9")),
    ]
    build_once(folder, "listed", lambda: _make_listed(folder, fleet, outcomes))
    return Built(folder, fleet, outcomes)


def _make_listed(folder: Path, fleet: Sequence[Device], outcomes: Sequence[Outcome]) -> None:
    running(folder, fleet, outcomes)
    products = ProductsFile(folder)
    names = (("p1", ("ble", "default", "mcu"), 5), ("p2", None, 1))
    products.replace_products(
        "demo", [ProductInfo("demo", key, f"Product {key}", 5, devices, modules) for key, modules, devices in names]
    )
    products.write()
    gap = GapInfo("p2", 1, 5, 5, "iot.odd: it could not be listed")
    facts = DiscoveryInfo("demo", "partial", 2, 6, 1, 0, {"": 6}, RequestCounts(4, 0, 0), 4, 1, 1, (gap,))
    edit_manifest(folder, lambda manifest: replace(manifest, discovery=(facts,)))
    finish(folder)


def running_sampled(
    folder: Path, fleet: Sequence[Device], sample: Sequence[Device], outcomes: Sequence[Outcome]
) -> Built:
    """A sampled run that is not sealed."""
    built = running(folder, fleet, outcomes)
    _write_rows(
        folder / SELECTED, [structs.asdict(device) | {"selection_reason": "sample"} for device in sample], "'VARCHAR'"
    )
    return built


def sampled(folder: Path, fleet: Sequence[Device], sample: Sequence[Device], outcomes: Sequence[Outcome]) -> Built:
    """A sealed sampled run."""

    def make() -> None:
        running_sampled(folder, fleet, sample, outcomes)
        finish(folder)

    build_once(folder, ("sampled", fleet, sample, outcomes), make)
    return Built(folder, fleet, outcomes)


def carried_run(
    folder: Path, fleet: Sequence[Device], outcomes: Sequence[Outcome], carried: Sequence[tuple[DeviceResult, str]]
) -> Built:
    """A run with carried results and the time of each."""
    build_once(folder, ("carried", fleet, outcomes, carried), lambda: _make_carried(folder, fleet, outcomes, carried))
    return Built(folder, fleet, outcomes)


def _make_carried(
    folder: Path, fleet: Sequence[Device], outcomes: Sequence[Outcome], carried: Sequence[tuple[DeviceResult, str]]
) -> None:
    running(folder, fleet, outcomes)
    rows = [
        {name: getattr(each.device, name) for name in ("account", "product_key", "device_name", "iot_id")}
        | {"status": each.status, "modules": [structs.asdict(module) for module in each.modules]}
        | {
            "total": each.total,
            "pages": each.pages,
            "request_id": None,
            "audited_at": at,
            "reason": None,
            "run": "previous",
        }
        for each, at in carried
    ]
    kinds = (
        "CASE name WHEN 'modules' THEN 'STRUCT(module_name VARCHAR, module_version VARCHAR)[]' "
        "WHEN 'total' THEN 'BIGINT' WHEN 'pages' THEN 'BIGINT' WHEN 'audited_at' THEN 'TIMESTAMP' ELSE 'VARCHAR' END"
    )
    _write_rows(folder / CARRIED, rows, kinds)
    finish(folder)


def _write_rows(path: Path, rows: Sequence[dict[str, object]], kind: str) -> None:
    """Parquet of such rows; ``kind`` is the SQL of the type of a column ``name``."""
    lines = path.with_suffix(".jsonl")
    lines.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    with connect() as database:
        names = list(rows[0])
        kinds = dict(database.execute(f"SELECT name, {kind} FROM (SELECT unnest(?) AS name)", [names]).fetchall())
        columns = {name: kinds[name] for name in names}
        query = f"FROM read_json({sql_read_path(lines)}, columns = {columns}, hive_partitioning = false)"
        database.execute(f"COPY ({query}) TO {sql_literal(path)} (FORMAT parquet)")
    lines.unlink()
