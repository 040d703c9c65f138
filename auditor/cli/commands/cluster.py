"""Commands of an audit on several machines: cut, shard and stop."""

import os
import re
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from auditor.cli.console import print_error, print_line, print_notes
from auditor.cli.options import (
    Accounts,
    Config,
    LogFormatOption,
    LogLevel,
    ProgressOption,
    parse_duration_flag,
    restrict_accounts,
)
from auditor.errors import AuditInterruptedError, AuditStoppedError, InvalidObjectError, SettingsError, UsageError
from auditor.text.extras import describe_extra
from auditor.text.formatting import format_count, parse_manifest_time, safe
from auditor.text.shell import format_command

if TYPE_CHECKING:
    from auditor.cli.execution import Start
    from auditor.cluster.plan import ShardPlan
    from auditor.concurrency import StopToken
    from auditor.config.settings import ClusterSettings, Settings
    from auditor.engine.progress import AuditResult, ProgressCallback
    from auditor.storage.object_store import ObjectStore

INDEX_VARIABLES = {
    "JOB_COMPLETION_INDEX": "JOB_COMPLETIONS",
    "SLURM_ARRAY_TASK_ID": "SLURM_ARRAY_TASK_COUNT",
    "AWS_BATCH_JOB_ARRAY_INDEX": "AWS_BATCH_JOB_ARRAY_SIZE",
}
"""Variables in which Kubernetes, Slurm and AWS Batch give the index of a task, from 0, and the number of indexes.

Kubernetes gives no number: the manifest does, beside its completions.
"""

_CUT_RUN = re.compile(r"\d{8}T\d{6}Z-.+")

MAX_INDEX_DIGITS = 9
"""Digits of an index; Python refuses to read numbers of some thousand digits."""

Address = Annotated[
    str, Parameter(help="Address of a run, as auditor cut printed it, or of a storage (uses its newest run).")
]


def cut(config: Config, /, *, account: Accounts = None, log_level: LogLevel = "warning") -> int:
    """Cut a run into shards for several machines, and print its address and the number of shards.

    Read the fleet files, and store the fleet and the plan in the storage of [cluster]. Query nothing, and need no key.
    Start auditor shard with the address once for each shard.
    """
    from auditor.cli.runtime import log_to_stderr
    from auditor.cluster.cut import cut_run
    from auditor.cluster.storage import join_address, open_run, record_newest
    from auditor.config.loader import load_settings

    log_to_stderr(log_level)
    loaded = load_settings(config)
    storage = _require_cluster(loaded, config).storage
    settings, excluded = _restrict(loaded, account)
    name, plan = cut_run(settings, lambda name: open_run(join_address(storage, name), create=True), excluded)
    record_newest(open_run(storage), plan.name, name)
    print_notes(_describe_hooks(settings))
    print_error(f"{format_count(len(plan.shards), 'shard')}: start auditor shard for each index from 0")
    print_line(safe(join_address(storage, name)))
    return 0


def _require_cluster(settings: "Settings", config: Path) -> "ClusterSettings":
    if settings.cluster is None:
        raise SettingsError(f'{config}: has no [cluster]; add [cluster] with storage = "/mnt/audits" or "s3://BUCKET"')
    return settings.cluster


def _restrict(settings: "Settings", accounts: "Accounts") -> "tuple[Settings, tuple[str, ...]]":
    """Return the settings with the accounts of --account, and the names of the others."""
    kept = restrict_accounts(settings, accounts)
    names = {each.name for each in kept.account}
    return kept, tuple(each.name for each in settings.account if each.name not in names)


def refuse_flags(given: Mapping[str, object]) -> None:
    """Raise UsageError for the first flag that is given, and that a run of shards cannot follow."""
    for flag, value in given.items():
        if value is not None and value is not False:
            raise UsageError(f"{flag}: is not for a run of shards; leave it out")


def start_on(
    on: str,
    settings: "Settings",
    config: Path,
    accounts: Collection[str],
    out: Path | None,
    *,
    prepare: Callable[[], None],
) -> "Start":
    """Return the function that queries a run by processes of Dask; each calls ``prepare`` first.

    Raises:
        UsageError: ``on`` is no engine, or the package is not installed.
        SettingsError: the accounts need several engines, or there is no storage.
    """
    from auditor.cluster.driver import parse_engine, run_on_engine

    target = parse_engine(on, len(os.sched_getaffinity(0)))
    _require_cluster(settings, config)
    kept, excluded = _restrict(settings, list(accounts))
    if len({each.site for each in kept.account}) > 1:
        advice = "use auditor cut, and auditor shard --site at each, or --account"
        raise SettingsError(f"--on: processes of one engine are at one site, and the accounts have several; {advice}")
    try:
        from auditor.cluster.dask import open_dask
    except ImportError as error:
        raise UsageError(f"--on needs {error.name}: {describe_extra('dask')}") from None

    def start(watch: "ProgressCallback", stop: "StopToken") -> "Awaitable[AuditResult]":
        return run_on_engine(
            kept,
            lambda shards: open_dask(target if isinstance(target, str) else min(target, shards), config, prepare),
            Path(settings.directory) if out is None else out,
            excluded_accounts=excluded,
            stop=stop,
            on_progress=watch,
        )

    return start


def _describe_hooks(settings: "Settings") -> list[str]:
    """Return a sentence about the hooks of the settings, which no shard runs."""
    hooks = {"policy": settings.policy, "notify": settings.notify, "publish": settings.publish}
    names = [f"[{name}]" for name, hook in hooks.items() if hook]
    names += ["[report]"] if settings.report.html or settings.report.excel or settings.report.metrics else []
    names += ["[metrics]"] if settings.metrics.pushgateway is not None else []
    return [f"no shard runs {', '.join(names)}: fetch the sealed run, and use its commands"] if names else []


def shard(
    run: Address,
    /,
    *,
    settings: Path,
    index: int | None = None,
    site: str | None = None,
    newer_than: str | None = None,
    log_level: LogLevel = "warning",
    log_format: LogFormatOption = "text",
    progress: ProgressOption = "auto",
) -> int:
    """Query one shard of a run that was cut, on this machine; the last shard seals the run.

    Continue what an earlier process of the shard has stored. Exit with 0 when the shard is done, with 3 when the
    account is refused or the storage stays away, with 130 when interrupted: start it again; with 75 when another
    process has taken over the shard: do not start it again.

    Parameters
    ----------
    settings:
        Settings of this machine. Keys, endpoints, commands and proxies come from nowhere else.
    index:
        Index of the shard, from 0; default: JOB_COMPLETION_INDEX, SLURM_ARRAY_TASK_ID or AWS_BATCH_JOB_ARRAY_INDEX.
    site:
        Count only shards of accounts with this site.
    newer_than:
        Exit with 3 if the run was cut longer ago, such as 20h: then the last cut failed.
    """
    from auditor.cli.progress import show_progress
    from auditor.cli.runtime import log_to_stderr, run_until_signal
    from auditor.cluster.shard import ShardWorker
    from auditor.config.loader import load_settings

    log_to_stderr(log_level, log_format, progress)
    own = load_settings(settings)
    _, storage, plan = _open(run, own.name)
    shards = plan.shards_of(site)
    _refuse_old(run, plan, newer_than)
    number = _find_index(len(shards)) if index is None else index
    if number < 0:
        raise UsageError(f"--index {number}: give a number from 0 to {len(shards) - 1}")
    if number >= len(shards):
        print_error(f"index {number}: there are {format_count(len(shards), 'shard')}; nothing to do")
        return 0
    workers: list[ShardWorker] = []

    async def work(stop: "StopToken") -> int:
        workers.append(ShardWorker(storage, plan, shards[number], own, stop=stop, on_progress=watch))
        return await workers[0].run()

    with show_progress() as watch:
        code = run_until_signal(work)
    ended = "every device was queried" if code == 0 else f"exit {code}"
    if code == 0 and (workers[0].was_done or workers[0].pending):
        ended = f"was done already, {format_count(workers[0].pending, 'device')} pending"
    print_error(f"shard {safe(shards[number].label)}: {ended}")
    return code


def _refuse_old(run: str, plan: "ShardPlan", newer_than: str | None) -> None:
    """Raise AuditStoppedError if a run was cut longer ago than a duration."""
    if newer_than is None:
        return
    seconds, started = parse_duration_flag("--newer-than", newer_than), parse_manifest_time(plan.started_at)
    if started is None or time.time() - started.timestamp() > seconds:
        when = f"was cut at {plan.started_at}, which is not within --newer-than {newer_than}"
        raise AuditStoppedError(f"{run}: its newest run {when}; see why auditor cut failed")


def _find_index(shards: int) -> int:
    """Return the index that a scheduler gives this task.

    Raises:
        UsageError: there is none, or a scheduler starts fewer indexes from 0 than there are shards.
    """
    for name, count in INDEX_VARIABLES.items():
        if (index := _read_number(name)) is not None:
            number = _read_number(count)
            is_part = _read_number("SLURM_ARRAY_TASK_MIN")  # a task that is started again alone, as --array=3
            if number is not None and number < shards and not is_part:
                need = f"{format_count(shards, 'shard')} need as many indexes"
                raise UsageError(f"{count}: {number}: {need}; start more, or give --index")
            return index
    raise UsageError(f"no index: give --index, or set one of {', '.join(INDEX_VARIABLES)}")


def _read_number(name: str) -> int | None:
    """Return the number of a variable of the environment; None: it is not set. Raise UsageError if it is none."""
    if (text := os.environ.get(name, "")) == "":
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_INDEX_DIGITS):
        raise UsageError(f"{name}: {text[:40]!r} is no index from 0; give --index")
    return int(text)


def stop(run: Address, /, *, log_level: LogLevel = "warning") -> int:
    """End a run that was cut, and seal the answers that it has.

    Workers end with 75 at their next checkpoint. Devices without an answer stay pending. Exit with the exit code of
    the sealed run.
    """
    from auditor.cli.runtime import log_to_stderr
    from auditor.cluster.merge import seal_if_done
    from auditor.cluster.progress import read_sealed
    from auditor.cluster.stop import stop_shards
    from auditor.concurrency import run_event_loop

    log_to_stderr(log_level)
    run, storage, plan = _open(run)
    if read_sealed(storage) is None:
        stopped = stop_shards(storage, plan)
        print_error(f"{format_count(len(stopped), 'shard')} stopped; sealing")
        run_event_loop(lambda: seal_if_done(storage, plan))
    sealed = read_sealed(storage)
    if sealed is None:
        raise UsageError(f"{run}: a shard started meanwhile; stop it again")
    print_error(safe(sealed[0].describe_exit()))
    return sealed[0].exit_code or 0


def fetch_cut_run(address: str, directory: Path) -> Path | None:
    """Fetch the sealed run folder of a run that was cut into a directory of runs; None: there is no such run."""
    from auditor.cluster.progress import fetch_run
    from auditor.cluster.storage import find_object, open_run
    from auditor.runs.folder import CUT_PLAN, NEWEST_CUT

    storage = open_run(address)
    if find_object(storage, CUT_PLAN) is None and not storage.list(NEWEST_CUT):
        return None
    run, storage, _ = _open(address)
    folder = directory / run.rstrip("/").rpartition("/")[2]
    existed = folder.exists()
    fetch_run(storage, folder)
    if existed:
        print_error(f"{safe(folder)}: was fetched before, and is equal")
    return folder


def check_run_storage(cluster: "ClusterSettings") -> None:
    """Check that a storage can hold runs, and print that it can; raise ObjectStoreError otherwise."""
    from auditor.cluster.storage import check_storage, open_run

    storage = open_run(cluster.storage)
    check_storage(storage)
    print_line(f"storage {safe(storage.address)}: lists what was put, and keeps what was written")


def _open(run: str, audit: str | None = None) -> "tuple[str, ObjectStore, ShardPlan]":
    """Return the address, the storage and the plan of a run."""
    from auditor.cluster.cut import read_plan
    from auditor.cluster.storage import find_run_address, open_run

    address = find_run_address(run, audit)
    storage = open_run(address)
    return address, storage, read_plan(storage)


def is_cluster_run(address: str) -> bool:
    """Return whether an address is that of a run that was cut, also if its storage is away now."""
    from auditor.runs.folder import is_cut_run

    path = Path(address)
    return is_cut_run(address) or (_CUT_RUN.fullmatch(path.name) is not None and not os.path.lexists(path.parent))


def print_shards(run: str) -> int:
    """Print how a run that was cut progresses: silent shards first, then by the age of their last checkpoint."""
    from auditor.cli.output import Column, print_columns
    from auditor.cluster.progress import read_progress, read_sealed
    from auditor.text.formatting import format_duration

    run, storage, plan = _open(run)
    sealed = read_sealed(storage)
    print_line(f"{safe(run)}: {'not sealed' if sealed is None else safe(sealed[0].describe_exit())}")
    columns = [Column("shard", []), Column("state", []), Column("checkpoint", [], "right")]
    columns += [Column(name, [], "right") for name in ("devices", "answered", "failed", "starts")]
    columns.append(Column("reason", []))
    for each in read_progress(storage, plan):
        counts = each.devices
        shown = ("", "", "") if counts is None else (counts.fleet, counts.answered, counts.failed)
        age = "" if each.age is None else f"{format_duration(each.age)} ago"
        age = age if each.readable else "progress unreadable"
        cells = (safe(each.shard.label), each.state, age, *(f"{count:,}" if counts else "" for count in shown))
        for column, cell in zip(columns, (*cells, f"{each.attempts:,}", each.reason or ""), strict=True):
            column.cells.append(cell)
    print_columns(columns if any(columns[-1].cells) else columns[:-1])
    return 0


def resume_cut_run(run: str, settings: Path | None) -> int:
    """Query the shards of a run that are not done on this machine, one after the other; return its exit code."""
    from auditor.cli.progress import show_progress
    from auditor.cli.runtime import run_until_signal
    from auditor.cluster.driver import query_open_shards
    from auditor.cluster.progress import read_sealed
    from auditor.config.loader import load_settings

    if settings is None:
        raise UsageError(f"{run}: a run that was cut has no settings; give those of this machine by --settings")
    own = load_settings(settings)
    run, storage, plan = _open(run, own.name)
    codes: dict[str, int] = {}
    if read_sealed(storage) is None:

        async def work(stop: "StopToken") -> "dict[str, int]":
            return await query_open_shards(storage, plan, own, stop=stop, on_progress=watch)

        with show_progress() as watch:
            codes = run_until_signal(work)
    print_line(safe(run))
    if (sealed := read_sealed(storage)) is not None:
        print_error(safe(sealed[0].describe_exit()))
        return sealed[0].exit_code or 0
    failed = [code for code in codes.values() if code]
    print_error(
        f"not sealed: {format_count(len(failed), 'shard')} failed; {format_command('auditor status', run)} shows all"
    )
    return failed[0] if failed else AuditInterruptedError.exit_code


def prune_cut_runs(address: str, *, keep: int | None, keep_days: int | None, dry_run: bool) -> int:
    """Delete old runs of a storage, and print their addresses."""
    from auditor.cluster.prune import prune_storage

    pruned = prune_storage(address, keep=keep, keep_days=keep_days, dry_run=dry_run)
    for run in pruned.removed:
        print_line(safe(run))
    for sentence in pruned.skipped:
        print_error(f"skipped: {safe(sentence)}")
    would = "would be deleted" if dry_run else "deleted"
    print_error(f"{format_count(len(pruned.removed), 'run')} {would}, {pruned.remaining:,} kept")
    return 0


@contextmanager
def fetch_temporarily(run: str) -> Iterator[Path]:
    """Yield the folder of a sealed run that was cut, in a temporary folder."""
    from auditor.cluster.progress import fetch_run
    from auditor.storage.files import private_folder

    address, storage, _ = _open(run)
    with private_folder("fetch") as folder:
        yield fetch_run(storage, folder / address.rstrip("/").rpartition("/")[2])


def verify_cut_run(run: str) -> int:
    """Verify the sealed files of a run that was cut, in a temporary folder."""
    from auditor.runs.verify import verify_run

    run = _open(run)[0]
    try:
        with fetch_temporarily(run) as folder:
            problems = verify_run(folder)
    except InvalidObjectError as error:
        problems = [str(error)]
    for problem in problems:
        print_line(safe(problem))
    if not problems:
        print_error(f"{safe(run)}: verified")
    return 1 if problems else 0
