"""How a stretch of an audit ended, for its manifest and for whoever waits for its exit code."""

from dataclasses import replace

from auditor.audit.progress import INTERRUPTED
from auditor.config import Settings
from auditor.inventory.folder import Manifest
from auditor.inventory.seal import Sealed


def sealed_manifest(asked: Manifest, sealed: Sealed, *, stopped: bool) -> Manifest:
    """The manifest of a run that was sealed and is not proven yet.

    Args:
        asked: as the audit ended.
        sealed: what is in the files.
        stopped: whether it was stopped by an error.
    """
    choice = asked.choice
    if choice is not None:
        choice = replace(choice, recheck=sealed.recheck, unreached=sealed.unreached)
    return replace(
        asked,
        state="aborted" if stopped else "partial",
        devices=sealed.devices,
        never_activated=sealed.never_activated,
        failures=sealed.failures,
        files=sealed.files,
        choice=choice,
        carried=sealed.carried,
        unsampled=sealed.unsampled,
        oldest=sealed.oldest,
    )


def unlisted(manifest: Manifest) -> list[str]:
    """Why the fleet may not be whole, a sentence each."""
    return [doubt for listing in manifest.listings if listing.state != "complete" for doubt in listing.doubts()]


def proven(manifest: Manifest) -> Manifest:
    """The manifest of a run whose numbers follow from its files: complete, if every device has an answer.

    Of a sample all that was to be asked may have been; it is not the fleet, and never complete.
    """
    if unlisted(manifest) or manifest.to_ask:
        return manifest
    return replace(manifest, state="partial" if manifest.unsampled else "complete", error=None)


def exit_code(manifest: Manifest, settings: Settings, *, whole: bool, interrupted: bool) -> int:
    """0 done; 1 more failed or are pending than is allowed, the run is not whole, or not precise; 130 interrupted."""
    pending = any(listing.state == "pending" for listing in manifest.listings)
    if whole and interrupted and (manifest.devices.pending > manifest.unsampled or pending):
        return INTERRUPTED
    # A device that is known of and was not listed is one that did not answer; how many are not known is no number.
    missing = sum(listing.missing for listing in manifest.listings)
    countable = not pending and not any(listing.unlisted for listing in manifest.listings)
    if (choice := manifest.choice) is not None and choice.precision is not None:
        countable = countable and choice.reached is not None and choice.reached <= choice.precision
    allowed = settings.failures_allowed(manifest.fleet.devices - manifest.unsampled + missing)
    return 0 if whole and countable and manifest.to_ask + missing <= allowed else 1
