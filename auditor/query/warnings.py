"""What readers of a run are warned of."""

from collections.abc import Iterator
from pathlib import Path

from auditor.errors import RunFolderError
from auditor.runs.folder import _COLUMNS, ANSWERED, FAILED, FLEET, PRODUCTS, is_sealed
from auditor.runs.manifest import DeviceCounts, Manifest, file_facts

WRONG = 0.01
"""The part of carried answers that is proven to be wrong from which on all numbers of a run are doubted."""


def incomplete(folder: Path, manifest: Manifest, counts: DeviceCounts, unsampled: int | None = None) -> tuple[str, ...]:
    """Why numbers of a run are not of the whole fleet, if they are not.

    Args:
        folder: the run folder.
        manifest: what ``run.json`` says.
        counts: devices by state.
        unsampled: devices that were not drawn, as was counted; None: as ``run.json`` says.
    """
    found = []
    unsampled = manifest.unsampled if unsampled is None else unsampled
    left = counts.pending - unsampled
    unlisted = [f"{folder}: {doubt}" for listing in manifest.listings for doubt in listing.doubts()]
    if unsampled:
        found.append(sampled(folder, counts, unsampled))
    usual = manifest.state == "complete" or bool(unlisted) or (manifest.state == "partial" and unsampled > 0)
    if counts.failed or left or not usual:
        without = f"{counts.failed:,} devices failed and {left:,} are pending"
        found.append(f"{folder} is {manifest.state}: {without}{' of those that were drawn' if unsampled else ''}")
    found += _wrong(folder, manifest)
    if manifest.fleet.left_out:
        found.append(f"{folder} is not of the accounts {', '.join(manifest.fleet.left_out)} (--account)")
    elif manifest.fleet.cut:
        found.append(f"{folder} is of the first {manifest.fleet.devices:,} devices of its fleet alone (--limit)")
    return (*found, *unlisted)


def _wrong(folder: Path, manifest: Manifest) -> Iterator[str]:
    """That what is carried is wrong too often to be passed over, if rechecks prove it."""
    recheck = None if manifest.choice is None else manifest.choice.recheck
    if recheck is not None and recheck.low is not None and recheck.high is not None and recheck.low > WRONG:
        part = f"{recheck.low:.1%} to {recheck.high:.1%}"
        yield f"{folder}: of the answers that it carries {part} are others by now, as those tell that were asked again"


def sampled(folder: Path, counts: DeviceCounts, unsampled: int) -> str:
    """The sentence that a run is a random sample."""
    fleet = counts.ok + counts.empty + counts.not_found + counts.unanswered
    return (
        f"{folder} is a random sample: of {fleet:,} devices {unsampled:,} were not drawn; its shares are estimates "
        "with 95% intervals, and its counts are of the others alone"
    )


def label_of(state: str, counts: DeviceCounts, unsampled: int) -> str:
    """How far a run came, in a word: its state, or that it is a sample, of which all that were drawn have an answer."""
    if not unsampled or state not in ("complete", "partial"):
        return state
    return "sample" if counts.unanswered == unsampled else "partial sample"


def tampered(folder: Path, manifest: Manifest) -> tuple[str, ...]:
    """Files that are not those that were sealed; of those that are read here, ``auditor verify`` looks at all.

    Raises:
        RunFolderError: a file cannot be read.
    """
    facts = {each.name: each for each in manifest.files}
    read = (*_COLUMNS,) if is_sealed(folder, manifest) else (*({ANSWERED, FAILED} & set(facts)),)
    read += (PRODUCTS,) if PRODUCTS in facts and (folder / PRODUCTS).is_file() else ()
    try:
        changed = [name for name in read if file_facts(folder / name) != facts.get(name)]
        if file_facts(folder / FLEET).sha256 != manifest.fleet.sha256:
            changed.append(FLEET)
    except OSError as error:  # gone since: another process may prune
        raise RunFolderError(f"{folder}: cannot be read: {error.strerror}") from error
    gone = [name for name in (*_COLUMNS, PRODUCTS) if name in facts and not (folder / name).is_file()]
    if manifest.state == "running":  # resumed, so its files are set aside
        growing = not all(listing.state == "complete" for listing in manifest.listings)
        gone, changed = [], [name for name in changed if name == FLEET and not growing]
    return (
        *(f"{folder / name} was sealed and is missing" for name in gone),
        *(f"{folder / name} is not the file that was sealed (its digest differs)" for name in changed),
    )
