"""Attempts at a shard, in any order of their operations: what counts is the fleet, each device once."""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from auditor.cluster.attempt_log import AttemptLog, list_attempts, read_done
from auditor.cluster.attempts import ATTEMPTS, DONE, Base, PartRange, next_name, owner, read_listing
from auditor.errors import ObjectStoreError, SupersededError
from auditor.storage.object_store import ObjectStore
from tests.cluster.memory_storage import Fate, Killed, MemoryStorage, ScheduledProcess, ScheduledStorage

SHARD = "shards/0000-eu"
FLEET = [f"device-{number}" for number in range(7)]
DEVICES_PER_PART = 2


def persist(action: Callable[[], None]) -> None:
    """Repeat an action until the storage accepts it, as an attempt does at its checkpoints."""
    while True:
        try:
            action()
        except ObjectStoreError:
            continue
        return


def read_devices(storage: ObjectStore, base: Base) -> list[str]:
    keys = [f"{SHARD}/{ATTEMPTS}/{key}" for key in base.part_keys()]
    return [line for key in keys for line in storage.get(key, max_bytes=10_000).decode().splitlines()]


def query_shard(storage: ScheduledStorage) -> None:
    """Query the devices of a shard that remain, one part after the other."""
    log, answered = AttemptLog(storage, SHARD), list[str]()
    persist(log.begin)
    persist(lambda: answered.extend(read_devices(storage, log.base)))
    remaining = [device for device in FLEET if device not in answered]
    while remaining:
        part, remaining = remaining[:DEVICES_PER_PART], remaining[DEVICES_PER_PART:]
        content = "\n".join(part).encode()
        persist(lambda content=content: log.append(content))  # type: ignore[misc]
        persist(log.require_ownership)
    persist(lambda: log.finish(b"{}"))


def assert_each_done_marker_is_the_fleet(storage: MemoryStorage) -> int:
    """Check the marker that counts, and all others; return their number."""
    attempts = list_attempts(storage, SHARD)
    markers = 0
    for attempt in attempts.values():
        if attempt.is_done:
            done = read_done(storage, SHARD, {attempt.name: attempt})
            assert done is not None
            assert Counter(read_devices(storage, done.base)) == Counter(FLEET)
            markers += 1
    return markers


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), st.just(0), st.just(1)),
        st.tuples(st.just("late"), st.integers(0, 7), st.just(1)),
        st.tuples(st.sampled_from(get_args(Fate)), st.integers(0, 3), st.just(1)),
        st.tuples(st.just("done"), st.integers(0, 3), st.integers(1, 12)),
    ),
    min_size=8,
    max_size=40,
)
"""What happens, to which of the last attempts, and how many times."""


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS)
def test_any_order_of_attempts_kills_and_late_parts_gives_the_fleet_once(actions: list[tuple[str, int, int]]) -> None:
    storage = MemoryStorage()
    processes = [ScheduledProcess(storage, query_shard)]
    late = storage.late
    for action, number, times in actions:
        if action == "start":
            if len(processes) < 8:
                processes.append(ScheduledProcess(storage, query_shard))
        elif action == "late":
            if late:
                late.pop(number % len(late))()
        else:
            for process in processes[-1 - number :][:1] * times:
                process.step(action)  # type: ignore[arg-type]
        assert_each_done_marker_is_the_fleet(storage)
    last = ScheduledProcess(storage, query_shard)
    last.run_to_end()
    assert last.error is None, "an attempt that is alone does not finish"
    assert assert_each_done_marker_is_the_fleet(storage) >= 1
    for put in late:
        put()
    for process in processes:
        process.run_to_end()
        assert process.error is None or isinstance(process.error, SupersededError | Killed), process.error
    assert_each_done_marker_is_the_fleet(storage)


def test_a_kill_loses_at_most_the_part_that_was_not_stored() -> None:
    storage = MemoryStorage()
    first = ScheduledProcess(storage, query_shard)
    while not any("/parts/000002" in each.key for each in storage.list()):
        first.step()
    first.step("killed")
    second = AttemptLog(storage, SHARD)
    second.begin()
    assert read_devices(storage, second.base) == FLEET[: 2 * DEVICES_PER_PART]


def test_a_superseded_attempt_ends_and_its_successor_does_not() -> None:
    storage = MemoryStorage()
    first, second = AttemptLog(storage, SHARD), AttemptLog(storage, SHARD)
    first.begin()
    second.begin()
    with pytest.raises(SupersededError, match="is not retried"):
        first.finish(b"{}")
    second.finish(b"{}")
    assert [attempt.name for attempt in list_attempts(storage, SHARD).values() if attempt.is_done] == [second.name]
    assert SupersededError.exit_code == 75


def test_a_part_that_arrives_after_a_successor_began_does_not_count() -> None:
    storage = MemoryStorage()
    first, second, third = (AttemptLog(storage, SHARD) for _ in range(3))
    first.begin()
    first.append(b"device-1")
    second.begin()
    first.append(b"device-2")  # suspended until now
    second.append(b"device-2")
    third.begin()
    assert third.base.parts == (PartRange(first.name, 1), PartRange(second.name, 1))


def test_names_follow_each_other_whatever_the_clock_says() -> None:
    names = [next_name([], "f" * 16)]
    for token in ("0" * 16, "a" * 16):
        names.append(next_name(names, token))
    assert names == sorted(names)
    assert owner([*names, "999999-not-an-attempt", "x"]) == names[-1]
    assert owner([]) is None


def keys_of(name: str, objects: Iterable[str]) -> list[str]:
    return [f"{name}/{each}" for each in objects]


def test_parts_count_up_to_the_first_gap_and_only_complete_snapshots() -> None:
    name = next_name([], "a" * 16)
    objects = ["base.json", "parts/000001.jsonl.gz", "parts/000002.jsonl.gz", "parts/000004.jsonl.gz"]
    snapshots = ["snapshots/000001/run.json", "snapshots/000001/fleet.parquet", "snapshots/000002/fleet.parquet"]
    found = read_listing([*keys_of(name, [*objects, *snapshots]), "other/base.json", f"{name}/parts/1.jsonl.gz"])
    assert [(each.parts, each.snapshot, each.has_base, each.is_done) for each in found.values()] == [
        (2, 1, True, False)
    ]
    assert DONE not in objects


def test_a_base_names_its_parts_in_order() -> None:
    first = Base().extended("000001-" + "a" * 16, 2, 1).extended("000002-" + "b" * 16, 0, 0)
    assert first.parts == (PartRange("000001-" + "a" * 16, 2),)
    assert first.snapshot == f"000001-{'a' * 16}/snapshots/000001"
    assert [key[-15:] for key in first.part_keys()] == ["000001.jsonl.gz", "000002.jsonl.gz"]
