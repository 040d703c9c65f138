"""Runs of a storage that several machines share: old ones are deleted, unless they are not sealed; the newest one."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from auditor.cluster.progress import read_sealed
from auditor.cluster.storage import join_address, open_run
from auditor.errors import InvalidObjectError, UsageError
from auditor.log import log
from auditor.runs.folder import CUT_PLAN, NEWEST_CUT
from auditor.runs.manifest import MANIFEST, Manifest
from auditor.runs.retention import refuse_limits
from auditor.text.formatting import format_utc
from auditor.text.shell import format_command

_RUN = re.compile(r"\d{8}T\d{6}Z-(.+)")

_DAY = 86_400


@dataclass(frozen=True, slots=True)
class StoragePrune:
    """Result of ``prune_storage``.

    Attributes:
        removed: addresses of runs that were deleted, or would be.
        skipped: why an old run was not deleted, a sentence each.
        remaining: number of runs that are left.
    """

    removed: tuple[str, ...]
    skipped: tuple[str, ...]
    remaining: int


def prune_storage(
    address: str, *, keep: int | None = None, keep_days: int | None = None, dry_run: bool = False
) -> StoragePrune:
    """Delete the sealed runs that are neither among the newest ``keep`` of their name, nor younger than ``keep_days``.

    The newest successful run of each name stays. What a killed deletion left is deleted, too.

    Raises:
        UsageError: there is no limit, one is below 1, or the storage has no runs.
        ObjectStoreError: the storage cannot be used now.
    """
    refuse_limits(keep, keep_days)
    storage = open_run(address)
    folders = {name: list(keys) for name, keys in groupby((each.key for each in storage.list()), _first_folder)}
    if NEWEST_CUT not in folders:
        raise UsageError(f"{address}: is no storage of runs that were cut; give that of [cluster]")
    sealed: dict[str, list[tuple[str, Manifest]]] = {}
    removed, skipped = list[str](), list[str]()
    for name in sorted((each for each in folders if _RUN.fullmatch(each)), reverse=True):
        run = join_address(address, name)
        if f"{name}/{MANIFEST}" not in folders[name]:
            skipped.append(f"{run}: is not sealed; {format_command('auditor stop', run)} seals what it has")
        elif f"{name}/{CUT_PLAN}" not in folders[name]:
            removed.append(name)
        else:
            try:
                found = read_sealed(open_run(run))
            except InvalidObjectError as error:
                skipped.append(str(error))
            else:
                sealed.setdefault(name.partition("-")[2], []).extend([(name, found[0])] if found else [])
    for runs in sealed.values():
        removed += _old_runs(runs, keep, keep_days)
    for name in removed if not dry_run else ():
        last = f"{name}/{MANIFEST}"  # without a plan no process starts; what has only this was not deleted completely
        storage.delete([f"{name}/{CUT_PLAN}"])
        storage.delete(key for key in folders[name] if key != last)
        storage.delete([last])
    remaining = sum(1 for name in folders if _RUN.fullmatch(name)) - len(removed)
    return StoragePrune(tuple(join_address(address, name) for name in removed), tuple(skipped), remaining)


def find_successes(address: str, audit: str) -> Iterator[str]:
    """Yield the names of the successful runs of an audit in a storage, the newest first; damaged ones are skipped."""
    keys = {each.key for each in open_run(address).list()}
    names = {_first_folder(key) for key in keys}
    for name in sorted((each for each in names if _RUN.fullmatch(each)), reverse=True):
        if name.partition("-")[2] == audit and {f"{name}/{MANIFEST}", f"{name}/{CUT_PLAN}"} <= keys:
            try:
                found = read_sealed(open_run(join_address(address, name)))
            except InvalidObjectError as error:
                log.warning("run_skipped", reason=str(error))
                continue
            if found is not None and found[0].is_success:
                yield name


def _first_folder(key: str) -> str:
    return key.partition("/")[0]


def _old_runs(runs: list[tuple[str, Manifest]], keep: int | None, keep_days: int | None) -> list[str]:
    """Return which runs of one name, the newest first, are old by each of the given limits."""
    oldest = None if keep_days is None else format_utc(max(0, int(time.time()) - keep_days * _DAY))
    newest_success = next((name for name, manifest in runs if manifest.is_success), None)
    return [
        name
        for name, manifest in runs[keep or 0 :]
        if name != newest_success and (oldest is None or manifest.started_at < oldest)
    ]
