"""Metrics of runs: every count equals a query over the run's files, and any parser can read the text."""

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from prometheus_client.parser import text_string_to_metric_families

from auditor.config.sections import MetricsSettings
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.hooks.metric_samples import HELP
from auditor.hooks.prometheus import render_metrics, write_metrics
from auditor.models import Outcome
from auditor.policy.loader import load_policy
from auditor.runs.folder import DEVICES, MODULES
from auditor.runs.manifest import Manifest
from auditor.runs.selection_info import (
    MismatchedAccount,
    OutdatedResults,
    Recheck,
    ReleasesInfo,
    RequestCounts,
    SelectionInfo,
)
from auditor.text.formatting import safe
from tests.database import connect
from tests.runs.run_folders import (
    HOSTILE,
    START,
    build,
    edit_manifest,
    every_status,
    failed,
    named,
    not_found,
    ok,
    running,
)

ORDER = (
    "account", "product_key", "module_name", "module_version", "rule", "severity", "unit", "verdict", "code", "kind",
    "state",
)  # fmt: skip
"""How the tests order labels; in the text they are sorted."""


class Samples:
    """A metrics text as an independent parser reads it."""

    def __init__(self, text: bytes) -> None:
        self.families = list(text_string_to_metric_families(text.decode()))
        found = [
            (sample.name, tuple(sample.labels.items()), sample.value) for f in self.families for sample in f.samples
        ]
        self.values = {(name, labels): value for name, labels, value in found}
        assert len(self.values) == len(found), "a series twice: node_exporter refuses the file"

    def of(self, name: str) -> dict[tuple[str, ...], float]:
        """Values by labels, but for the run."""
        return {
            tuple(dict(labels)[label] for label in ORDER if label in dict(labels)): value
            for (found, labels), value in self.values.items()
            if found == name
        }

    def one(self, name: str) -> float:
        (value,) = self.of(name).values()
        return value


def read_metrics(folder: Path, policy: str | None = None, group_by: tuple[str, ...] = (), **options: Any) -> Samples:
    path = folder.parent / "auditor.prom"
    loaded = None
    if policy is not None:
        (folder.parent / "rules.toml").write_text(policy)
        loaded = load_policy(folder.parent / "rules.toml")
    write_metrics(folder, path, policy=loaded, group_by=group_by, options=MetricsSettings(**options))
    return Samples(path.read_bytes())


def warnings_of(folder: Path) -> dict[str, float]:
    """Kinds of warnings that a run has, and their numbers."""
    return {kind: number for (kind,), number in read_metrics(folder).of("auditor_run_warnings").items() if number}


def query_files(folder: Path, query: str) -> list[tuple[object, ...]]:
    """Query the run's Parquet files, independently of the product."""
    with connect() as database:
        for view, name in (("devices", DEVICES), ("modules", MODULES)):
            database.execute(f"CREATE TEMP VIEW {view} AS FROM read_parquet('{folder / name}')")
        return database.execute(query).fetchall()


def test_counts_equal_queries_over_the_files_and_the_outcomes(tmp_path: Path) -> None:
    built = every_status(tmp_path / "run")
    samples = read_metrics(built.folder)
    assert samples.one("auditor_fleet_devices") == len(built.fleet) == 10
    by_state = {
        (account, state): devices
        for account, state, devices in query_files(
            built.folder, "SELECT account, status, count(*) FROM devices GROUP BY ALL"
        )
    }
    shown = samples.of("auditor_devices")
    assert {key: value for key, value in shown.items() if value} == by_state
    assert len(shown) == 2 * 5
    assert by_state["demo", "pending"] == 1
    versions = {
        (account, product, name, version): devices
        for account, product, name, version, devices in query_files(
            built.folder,
            "SELECT account, product_key, module_name, module_version, count(*) FROM modules GROUP BY ALL",
        )
    }
    assert samples.of("auditor_module_version_devices") == versions
    assert versions["demo", "p1", "ble", "1.0"] == 2
    alive = Counter(key[:3] for key in versions)
    assert samples.of("auditor_module_versions") == alive
    per_module: Counter[tuple[object, ...]] = Counter()
    for key, devices in versions.items():
        per_module[key[:3]] += int(str(devices))
    assert samples.of("auditor_module_devices") == per_module
    codes = query_files(built.folder, "SELECT code, count(*) FROM devices WHERE status = 'failed' GROUP BY ALL")
    assert samples.of("auditor_failed_devices") == {(code,): devices for code, devices in codes}
    assert samples.one("auditor_oldest_answer_timestamp_seconds") == START + 3.123
    assert samples.one("auditor_module_versions_omitted") == samples.one("auditor_modules_omitted") == 0


def test_module_names_that_differ_only_in_case_are_one_module(tmp_path: Path) -> None:
    fleet = [named(n) for n in range(3)]
    folder = build(
        tmp_path / "run", fleet, [ok(d, (m, "1")) for d, m in zip(fleet, ("BLE", "ble", "Ble"), strict=True)]
    )
    assert read_metrics(folder.folder).of("auditor_module_version_devices") == {("demo", "p1", "ble", "1"): 3}


def test_file_can_be_parsed_with_any_version_text_metrics(tmp_path: Path) -> None:
    texts = [*HOSTILE, "\x85next\u2028line", "\ud7ff\uffff", "x" * 5_000, "x" * 4_000, "\0" * 300, "# HELP x y", '"} 1']
    fleet = [named(n) for n in range(len(texts))]
    built = build(
        tmp_path / "run", fleet, [ok(d, ("ble", t), (t or "m", "1")) for d, t in zip(fleet, texts, strict=True)]
    )
    samples = read_metrics(built.folder)
    found = samples.of("auditor_module_version_devices")
    assert sum(found.values()) == len(texts) * 2
    expected = Counter(safe(text[:200])[:200] for text in texts)
    assert Counter({key[3]: int(value) for key, value in found.items() if key[2] == "ble"}) == expected
    assert expected["x" * 200] == 2
    assert all(text.isprintable() for key in found for text in key)
    raw = (tmp_path / "auditor.prom").read_bytes()
    assert b"\0" not in raw
    assert b"\r" not in raw


def test_only_the_largest_modules_have_series_and_the_others_are_counted(tmp_path: Path) -> None:
    fleet = [named(n) for n in range(20)]
    outcomes: list[Outcome] = [ok(d, (f"m{n % 7}", f"1.{n // 2}")) for n, d in enumerate(fleet)]
    outcomes[0] = ok(fleet[0], ("m6", "big"))
    outcomes[1] = ok(fleet[1], ("m6", "big"))
    folder = build(tmp_path / "run", fleet, outcomes).folder
    samples = read_metrics(folder, max_series=5)
    versions, modules = samples.of("auditor_module_version_devices"), samples.of("auditor_module_versions")
    (total,) = query_files(folder, "SELECT count(DISTINCT (module_name, module_version)) FROM modules")
    assert (len(versions), len(modules)) == (5, 5)
    assert samples.one("auditor_module_versions_omitted") == int(str(total[0])) - 5
    assert samples.one("auditor_modules_omitted") == 7 - 5
    assert versions["demo", "p1", "m6", "big"] == 2
    assert ("demo", "p1", "m6") in modules


def test_modules_with_series_can_be_selected_and_the_others_are_counted(tmp_path: Path) -> None:
    fleet = [named(n) for n in range(4)]
    outcomes: list[Outcome] = [ok(d, ("MCU", "1"), ("ble", str(n)), ("ble-radio", "1")) for n, d in enumerate(fleet)]
    folder = build(tmp_path / "run", fleet, outcomes, details=[{"attributes": {"site": "a"}}] * 4).folder
    samples = read_metrics(folder, group_by=("site",), modules=("mcu", "ble-*"))
    selected = {("demo", "p1", "MCU"), ("demo", "p1", "ble-radio")}
    assert set(samples.of("auditor_module_devices")) == selected
    assert set(samples.of("auditor_rollout_share")) == selected
    for name in ("auditor_module_version_devices", "auditor_group_version_devices"):
        found = {dict(labels)["module_name"] for metric, labels in samples.values if metric == name}
        assert found == {"MCU", "ble-radio"}, name
    counts = {
        name: samples.one(f"auditor_{name}") for name in ("modules_excluded", "modules_omitted", "rollouts_omitted")
    }
    assert counts == {"modules_excluded": 1, "modules_omitted": 0, "rollouts_omitted": 0}
    assert sum(samples.of("auditor_rollouts").values()) == 3, "rollouts by state are of all modules"
    assert read_metrics(folder).one("auditor_modules_excluded") == 0
    assert read_metrics(folder, modules=("b*",), max_series=10).one("auditor_rollouts_omitted") == 1


def test_accounts_over_the_limit_are_counted(tmp_path: Path) -> None:
    fleet = [structs.replace(named(n), account=account) for n, account in enumerate("abbccc")]
    outcomes: list[Outcome] = [failed(d) if n % 2 else ok(d, ("ble", "1")) for n, d in enumerate(fleet)]
    samples = read_metrics(build(tmp_path / "run", fleet, outcomes).folder, max_series=2)
    shown = samples.of("auditor_devices")
    assert {key: value for key, value in shown.items() if value} == {
        ("b", "ok"): 1, ("b", "failed"): 1, ("c", "ok"): 1, ("c", "failed"): 2,
    }  # fmt: skip
    assert samples.one("auditor_accounts_omitted") == 1


def test_requests_rates_and_times_of_a_run_are_exported(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    edit_manifest(
        folder,
        lambda m: replace(m, requests=RequestCounts(12, 3, 2), rate=replace(m.rate, target=10.0, achieved=8.5)),
    )
    samples = read_metrics(folder)
    assert samples.of("auditor_run_requests") == {("sent",): 12, ("retried",): 3, ("throttled",): 2}
    assert samples.of("auditor_run_requests_per_second") == {("target",): 10, ("achieved",): 8.5}
    assert samples.one("auditor_run_duration_seconds") == 60
    assert samples.one("auditor_last_run_timestamp_seconds") == START + 60
    states = {("running",): 0, ("complete",): 0, ("within_tolerance",): 0, ("partial",): 1, ("aborted",): 0}
    assert samples.of("auditor_run_state") == states
    assert {dict(labels)["run"] for _, labels in samples.values} == {"nightly"}


def test_incomplete_and_tampered_runs_have_warnings(tmp_path: Path) -> None:
    whole = build(tmp_path / "a" / "run", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    assert set(read_metrics(whole).of("auditor_run_warnings").values()) == {0}
    partial = every_status(tmp_path / "b" / "run").folder
    assert warnings_of(partial) == {"incomplete": 1}
    (partial / MODULES).write_bytes((whole / MODULES).read_bytes())
    assert warnings_of(partial) == {"incomplete": 1, "tampered": 1}


NOT_REACHED = SelectionInfo("incremental", outdated=OutdatedResults(100, 3))
OUTDATED = SelectionInfo("incremental", recheck=Recheck(100, 50, 50, 4, 0.08, 0.02, 0.2))


@pytest.mark.parametrize(
    ("change", "warnings"),
    [
        (lambda m: replace(m, mismatched=(MismatchedAccount("a", 7), MismatchedAccount("b", 1))), {"mismatch": 2}),
        (lambda m: replace(m, releases=(ReleasesInfo("a", problems=("x",)), ReleasesInfo("b"))), {"releases": 1}),
        (lambda m: replace(m, fleet=replace(m.fleet, aliases=5)), {"aliases": 1}),
        (lambda m: replace(m, fleet=replace(m.fleet, possible_aliases=2)), {"aliases": 1}),
        (lambda m: replace(m, fleet=replace(m.fleet, shared_identities=2)), {"shared_identity": 1}),
        (lambda m: replace(m, selection=NOT_REACHED), {"not_reached": 1}),
        (lambda m: replace(m, selection=OUTDATED), {"recheck": 1}),
    ],
)
def test_every_warning_about_the_numbers_of_a_complete_run_has_a_sample(
    tmp_path: Path, change: Callable[[Manifest], Manifest], warnings: dict[str, float]
) -> None:
    folder = build(tmp_path / "run", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    edit_manifest(folder, change)
    assert warnings_of(folder) == warnings


def test_limited_run_has_no_rollouts_of_another_run(tmp_path: Path) -> None:
    for number in range(2):
        folder = build(tmp_path / f"run{number}", [named(0)], [ok(named(0), ("ble", "1"))]).folder
        edit_manifest(folder, lambda m, n=number: replace(m, started_at=f"2026-11-2{n}T02:00:00.000Z"))  # type: ignore[misc]
    assert any(name.startswith("auditor_rollout") for name, _ in read_metrics(folder).values)
    edit_manifest(folder, lambda manifest: replace(manifest, fleet=replace(manifest.fleet, limit=1)))
    assert not any(name.startswith("auditor_rollout") for name, _ in read_metrics(folder).values)


def test_running_run_has_its_current_counts(tmp_path: Path) -> None:
    fleet = [named(0), named(1)]
    samples = read_metrics(running(tmp_path / "run", fleet, [ok(fleet[0], ("ble", "1"))]).folder)
    counts = samples.of("auditor_devices")
    assert (counts["demo", "ok"], counts["demo", "pending"]) == (1, 1)
    assert samples.of("auditor_module_version_devices") == {("demo", "p1", "ble", "1"): 1}
    assert samples.one("auditor_last_run_timestamp_seconds") == START
    assert samples.of("auditor_run_duration_seconds") == {}
    assert samples.of("auditor_run_state")["running",] == 1


def test_last_success_is_the_newest_complete_run_of_the_same_name(tmp_path: Path) -> None:
    def run(name: str, *, whole: bool, ended: str, of: str = "nightly") -> Path:
        outcome = not_found(named(0)) if whole else failed(named(0))
        folder = build(tmp_path / name, [named(0)], [outcome]).folder
        edit_manifest(folder, lambda m: replace(m, name=of, started_at=ended, finished_at=ended))
        return folder

    now = run("5", whole=False, ended="2026-11-25T02:00:00.000Z")
    assert read_metrics(now).of("auditor_last_success_timestamp_seconds") == {}
    run("1", whole=True, ended="2026-11-21T02:00:00.000Z")
    run("2", whole=True, ended="2026-11-22T02:00:00.000Z")
    run("3", whole=False, ended="2026-11-23T02:00:00.000Z")
    run("4", whole=True, ended="2026-11-24T02:00:00.000Z", of="other")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    assert read_metrics(now).one("auditor_last_success_timestamp_seconds") == START


def test_times_that_cannot_be_parsed_are_omitted(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    edit_manifest(folder, lambda m: replace(m, started_at="yesterday", finished_at="\0"))
    samples = read_metrics(folder)
    assert samples.of("auditor_run_duration_seconds") == samples.of("auditor_last_run_timestamp_seconds") == {}
    assert samples.one("auditor_fleet_devices") == 10


def test_a_time_without_a_zone_is_in_utc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = every_status(tmp_path / "run").folder
    edit_manifest(folder, lambda m: replace(m, finished_at=m.started_at.removesuffix("Z")))
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "Asia/Shanghai")
        time.tzset()
        samples = read_metrics(folder)
    time.tzset()
    assert samples.one("auditor_last_run_timestamp_seconds") == START
    assert samples.one("auditor_run_duration_seconds") == 0


POLICY = """
[[rule]]
name = 'ble "at least" 1.1'
module = "ble"
minimum = "1.1"
[[rule]]
name = "no 9"
severity = "warning"
module = "ble"
deny = "9"
[[rule]]
name = "never seen"
severity = "note"
module = "nothing"
minimum = "1"
"""


def test_policy_verdicts_and_violations_are_exported(tmp_path: Path) -> None:
    samples = read_metrics(every_status(tmp_path / "run").folder, POLICY)
    assert samples.one("auditor_policy_evaluated") == 1
    assert samples.of("auditor_policy_violations") == {("error",): 2, ("warning",): 1, ("note",): 0}
    subjects = samples.of("auditor_policy_rule_subjects")
    rule = ('ble "at least" 1.1', "error", "devices")
    counts = {verdict: subjects[(*rule, verdict)] for verdict in ("compliant", "violated", "unparseable", "exempt")}
    assert counts == {"compliant": 2, "violated": 2, "unparseable": 0, "exempt": 0}
    verdicts = samples.of("auditor_policy_rule")
    assert verdicts[(*rule[:2], "violated")] == 1
    assert verdicts[(*rule[:2], "compliant")] == 0
    assert samples.of("auditor_run_warnings")["policy",] == 1


def test_there_are_no_policy_metrics_without_a_policy(tmp_path: Path) -> None:
    assert b"auditor_policy" not in render_metrics(every_status(tmp_path / "run").folder)


def test_each_metric_is_documented_and_a_gauge(tmp_path: Path) -> None:
    samples = read_metrics(every_status(tmp_path / "run").folder, POLICY, ("site",))
    names = {family.name for family in samples.families}
    some = {"auditor_last_success_timestamp_seconds", "auditor_module_version_share", "auditor_run_exit_code"}
    some |= {"auditor_rollout_share"} | {name for name in HELP if name.startswith("auditor_running_")}
    assert names | some == set(HELP)
    for family in samples.families:
        assert family.name.startswith("auditor_")
        assert family.documentation.endswith(".")
        assert family.type == "gauge"


@pytest.fixture
def strict_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("strict_umask")
def test_file_is_replaced_atomically_and_readable_by_all_users(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    path = tmp_path / "auditor.prom"
    path.write_text("old")
    path.chmod(0o644)
    with path.open() as old:
        write_metrics(folder, path)
        assert old.read() == "old"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert {each.name for each in tmp_path.iterdir()} == {"run", "auditor.prom"}


def test_a_symbolic_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    (tmp_path / "real.prom").write_text("untouched")
    (tmp_path / "link.prom").symlink_to(tmp_path / "real.prom")
    write_metrics(folder, tmp_path / "link.prom")
    assert not (tmp_path / "link.prom").is_symlink()
    assert b"auditor_fleet_devices" in (tmp_path / "link.prom").read_bytes()
    assert (tmp_path / "real.prom").read_text() == "untouched"


def test_paths_that_are_not_regular_files_are_refused(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    os.mkfifo(tmp_path / "pipe.prom")
    for name in ("pipe.prom", "run", "no/such/folder.prom"):
        with pytest.raises(RunNotWritableError, match="cannot be"):
            write_metrics(folder, tmp_path / name)
    assert stat.S_ISFIFO((tmp_path / "pipe.prom").stat().st_mode)
    assert {each.name for each in tmp_path.iterdir()} == {"run", "pipe.prom"}


def test_old_file_is_kept_when_the_run_cannot_be_read(tmp_path: Path) -> None:
    folder = every_status(tmp_path / "run").folder
    (folder / DEVICES).write_bytes(b"PAR1 no more")
    (tmp_path / "auditor.prom").write_text("old")
    with pytest.raises(RunFolderError, match="cannot be read"):
        write_metrics(folder, tmp_path / "auditor.prom")
    assert (tmp_path / "auditor.prom").read_text() == "old"
