import os
import re
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import RunNotWritableError
from auditor.models import Device, DeviceFailure, DeviceResult, ModuleVersion, Outcome
from auditor.runs.journal import Journal, encode_outcome
from auditor.text.formatting import format_utc

pytestmark = pytest.mark.anyio

DEVICE = Device("demo", "k1h9drZble", "device001", "OZs5")
NIGHT = 1_795_312_803.123


def answered(number: int, modules: tuple[ModuleVersion, ...] = ()) -> DeviceResult:
    device = Device("demo", "p1", f"device{number}", None)
    return DeviceResult(device, "ok" if modules else "empty", modules, len(modules), 1, 1, None, NIGHT)


def failed(number: int) -> DeviceFailure:
    return DeviceFailure(Device("demo", "p1", f"device{number}", None), "X", "no", None, 5, None, NIGHT)


def test_a_result_line_has_exactly_the_keys_of_the_contract() -> None:
    outcome = DeviceResult(DEVICE, "ok", (ModuleVersion("ble", "1.0"),), 1, 1, 1, "47f85a55", NIGHT)
    assert encode_outcome(outcome) == (
        b'{"account":"demo","product_key":"k1h9drZble","device_name":"device001","iot_id":"OZs5",'
        b'"status":"ok","modules":[{"module_name":"ble","module_version":"1.0"}],"total":1,"pages":1,'
        b'"attempts":1,"request_id":"47f85a55","audited_at":"2026-11-22T02:00:03.123Z"}\n'
    )


def test_a_failure_line_has_exactly_the_keys_of_the_contract() -> None:
    outcome = DeviceFailure(Device("demo", None, None, "OZs5"), "auditor.Timeout", "no answer", None, 5, None, NIGHT)
    assert encode_outcome(outcome) == (
        b'{"account":"demo","product_key":null,"device_name":null,"iot_id":"OZs5",'
        b'"status":"failed","code":"auditor.Timeout","message":"no answer","http_status":null,"attempts":5,'
        b'"request_id":null,"failed_at":"2026-11-22T02:00:03.123Z"}\n'
    )


@given(st.floats(min_value=0, max_value=253_402_300_799))
def test_a_time_is_the_millisecond_that_datetime_says(seconds: float) -> None:
    text = format_utc(seconds)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    # Both sides cut or round a binary fraction, so they may fall on either side of a millisecond.
    said = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert abs(datetime.fromisoformat(text) - said) <= timedelta(milliseconds=1, microseconds=50)


@given(st.integers(0, 253_402_300_799_999))
def test_whole_milliseconds_are_kept_exactly(milliseconds: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    said = datetime.fromisoformat(format_utc(milliseconds / 1000))
    assert said == moment


@given(*[st.text(st.characters(exclude_categories=["Cs"])) for _ in range(4)])
def test_any_device_name_is_read_back_from_one_line(product: str, name: str, module: str, version: str) -> None:
    outcome = DeviceResult(
        Device("demo", product, name, None), "ok", (ModuleVersion(module, version),), 1, 1, 1, None, 0
    )
    line = encode_outcome(outcome)
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    assert len(line.decode().splitlines(keepends=False)[0]) > 0
    record = orjson.loads(line)
    assert (record["product_key"], record["device_name"]) == (product, name)
    assert record["modules"] == [{"module_name": module, "module_version": version}]


async def test_hostile_names_are_escaped_but_utf_8_stays_readable() -> None:
    line = encode_outcome(answered(1, (ModuleVersion('q"\n\0\x1b[31m', "😀é"),)))
    assert b'"module_name":"q\\"\\n\\u0000\\u001b[31m"' in line
    assert '"module_version":"😀é"'.encode() in line


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "devices.jsonl", tmp_path / "failures.jsonl"


async def test_results_and_failures_go_to_their_files_in_order_and_are_counted(paths: tuple[Path, Path]) -> None:
    outcomes: list[Outcome] = [
        answered(0),
        failed(1),
        answered(2, (ModuleVersion("ble", "1"),)),
        DeviceResult(DEVICE, "not_found", (), 0, 0, 1, None, NIGHT),
        failed(4),
        answered(5),
    ]
    with Journal(*paths, fsync_interval=1) as journal:
        for outcome in outcomes:
            await journal.append(outcome)
        assert journal.counts == {"ok": 1, "empty": 2, "not_found": 1, "failed": 2}
    assert paths[0].read_bytes() == b"".join(encode_outcome(o) for o in outcomes if isinstance(o, DeviceResult))
    assert paths[1].read_bytes() == b"".join(encode_outcome(o) for o in outcomes if isinstance(o, DeviceFailure))


async def test_a_journal_appends_to_existing_lines(paths: tuple[Path, Path]) -> None:
    for number in range(2):
        with Journal(*paths, fsync_interval=1) as journal:
            await journal.append(answered(number))
    assert paths[0].read_bytes() == encode_outcome(answered(0)) + encode_outcome(answered(1))
    assert paths[1].read_bytes() == b""


async def test_a_line_is_written_before_it_counts(paths: tuple[Path, Path]) -> None:
    with Journal(*paths, fsync_interval=1) as journal:
        for number in range(3):
            await journal.append(answered(number))
            assert paths[0].read_bytes() == b"".join(encode_outcome(answered(before)) for before in range(number + 1))
            assert journal.counts["empty"] == number + 1
        await journal.append(failed(3))
        assert paths[1].read_bytes() == encode_outcome(failed(3))


async def test_counts_continue_those_of_earlier_sessions(paths: tuple[Path, Path]) -> None:
    with Journal(*paths, {"ok": 5, "empty": 1, "pending": 7}, fsync_interval=1) as journal:
        await journal.append(answered(1))
        assert journal.counts == {"ok": 5, "empty": 2, "not_found": 0, "failed": 0}


async def test_a_reader_sees_a_prefix_of_the_file_at_any_moment(paths: tuple[Path, Path]) -> None:
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(paths[0].read_bytes())

    with Journal(*paths, fsync_interval=1) as journal:
        reader = threading.Thread(target=read)
        reader.start()
        try:
            for number in range(3000):
                await journal.append(answered(number, (ModuleVersion("ble", "1" * (number % 200)),)))
                if number % 100 == 0:
                    await anyio.sleep(0.001)
        finally:
            done.set()
            reader.join()
    whole = paths[0].read_bytes()
    assert whole.count(b"\n") == 3000
    assert len({len(content) for content in seen}) > 3
    # The last line may be torn: the system shows a large write in parts. Every reader here passes over that.
    assert all(whole.startswith(content) for content in seen)


async def test_a_full_disk_stops_the_run_with_advice(tmp_path: Path) -> None:
    async def write() -> None:
        with Journal(Path("/dev/full"), tmp_path / "failures.jsonl", fsync_interval=1) as journal:
            with pytest.raises(RunNotWritableError, match=r"^/dev/full: cannot be written: No space left.*; free some"):
                await journal.append(answered(1))
            assert journal.counts["empty"] == 0

    # A device is no file: closing it says so as well, by EINVAL for the sync.
    with pytest.raises(RunNotWritableError, match="/dev/full: cannot be written"):
        await write()


@pytest.mark.parametrize("broken", [0, 1])
async def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, broken: int) -> None:
    places = [tmp_path / "devices.jsonl", tmp_path / "failures.jsonl"]
    places[broken].mkdir()
    sentence = rf"{places[broken].name}: cannot be written: Is a directory"
    with pytest.raises(RunNotWritableError, match=sentence), Journal(places[0], places[1], fsync_interval=1):
        pytest.fail("opened")


@pytest.fixture
def small_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Room on the disk in bytes, per attempt; a write takes at most 10 bytes at a time."""
    room: list[int] = []
    write = os.write

    def limited(descriptor: int, content: bytes) -> int:
        if room and room[0] <= 0:
            room.pop(0)
            raise OSError(28, "No space left on device")
        taken = write(descriptor, bytes(content[: min(10, room[0] if room else 10)]))
        if room:
            room[0] -= taken
        return taken

    monkeypatch.setattr("auditor.storage.files.os.write", limited)
    return room


async def test_short_writes_are_continued(paths: tuple[Path, Path], small_writes: list[int]) -> None:
    with Journal(*paths, fsync_interval=1) as journal:
        await journal.append(answered(1))
        await journal.append(answered(2))
    assert paths[0].read_bytes() == encode_outcome(answered(1)) + encode_outcome(answered(2))


async def test_a_line_that_does_not_fit_on_the_disk_is_removed_and_no_line_follows(
    paths: tuple[Path, Path], small_writes: list[int]
) -> None:
    with Journal(*paths, fsync_interval=1) as journal:
        await journal.append(answered(1))
        small_writes.append(25)
        with pytest.raises(RunNotWritableError, match=r"devices\.jsonl: cannot be written: No space left.*; free some"):
            await journal.append(answered(2))
        assert small_writes == []  # there is room again
        with pytest.raises(RunNotWritableError, match="No space left"):
            await journal.append(answered(3))
        await journal.append(failed(4))
        assert journal.counts == {"ok": 0, "empty": 1, "not_found": 0, "failed": 1}
    assert paths[0].read_bytes() == encode_outcome(answered(1))
    assert paths[1].read_bytes() == encode_outcome(failed(4))


async def test_a_torn_line_that_cannot_be_removed_is_the_last_one(
    paths: tuple[Path, Path], small_writes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("auditor.storage.files.os.ftruncate", broken)
    with Journal(*paths, fsync_interval=1) as journal:
        await journal.append(answered(1))
        small_writes.append(25)
        for number in (2, 3):
            with pytest.raises(RunNotWritableError, match="No space left"):
                await journal.append(answered(number))
    assert paths[0].read_bytes() == encode_outcome(answered(1)) + encode_outcome(answered(2))[:25]


async def test_lines_written_before_an_error_in_the_block_are_kept(paths: tuple[Path, Path]) -> None:
    async def write() -> None:
        with Journal(*paths, fsync_interval=1) as journal:
            await journal.append(answered(1))
            await journal.append(failed(2))
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await write()
    assert paths[0].read_bytes() == encode_outcome(answered(1))
    assert paths[1].read_bytes() == encode_outcome(failed(2))
