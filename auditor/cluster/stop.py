"""End a run early: take over its shards that are not done, so that what they have is sealed."""

from auditor import __about__
from auditor.cluster.attempt_log import AttemptLog
from auditor.cluster.attempts import ATTEMPTS, STATE
from auditor.cluster.merge import read_markers, record_done
from auditor.cluster.plan import Shard, ShardPlan
from auditor.cluster.records import MAX_RECORD_BYTES, SHARD_RECORD_DECODER, decode_record, encode_record
from auditor.errors import InvalidObjectError, ObjectMissingError
from auditor.log import log
from auditor.runs.manifest import DeviceCounts, DiscoveryInfo, FleetInfo, Manifest
from auditor.storage.object_store import ObjectStore


def stop_shards(storage: ObjectStore, plan: ShardPlan) -> list[Shard]:
    """Take over all shards that are not done, and mark them done with the answers they have; return these shards.

    Their workers end with 75 at their next checkpoint. What they have not stored by then does not count.

    Raises:
        SupersededError: a worker of a shard started at the same time; stop again.
        ObjectStoreError: the storage cannot be used now.
    """
    done = read_markers(storage, plan)
    stopped = [shard for shard in plan.shards if shard.name not in done]
    for shard in stopped:
        attempts = AttemptLog(storage, shard.folder)
        attempts.begin()
        last = attempts.base.parts[-1].attempt if attempts.base.parts else None
        record = encode_record(_last_manifest(storage, plan, shard, last))
        attempts.report(record)
        attempts.finish(record)
    for shard in plan.shards:
        record_done(storage, shard)
    return stopped


def _last_manifest(storage: ObjectStore, plan: ShardPlan, shard: Shard, attempt: str | None) -> Manifest:
    """Return the last manifest that an attempt reported, or that of a shard that nothing was done for."""
    if attempt is not None:
        place = f"{shard.folder}/{ATTEMPTS}/{attempt}/{STATE}"
        try:
            return decode_record(storage.get(place, max_bytes=MAX_RECORD_BYTES), SHARD_RECORD_DECODER, place).manifest
        except (ObjectMissingError, InvalidObjectError) as error:
            log.warning("shard_progress_unreadable", shard=shard.label, reason=str(error))
    devices = shard.devices or 0
    return Manifest(
        auditor_version=__about__.VERSION,
        name=plan.name,
        state="partial",
        started_at=plan.started_at,
        accounts=tuple(each for each in plan.accounts if each.name == shard.account),
        fleet=FleetInfo(plan.fleet.source, devices, 0, plan.fleet.sha256),
        devices=DeviceCounts(pending=devices),
        discovery=(DiscoveryInfo(shard.account),) if shard.devices is None else (),
        modules=plan.modules,
    )
