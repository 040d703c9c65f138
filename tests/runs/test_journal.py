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
from auditor.models import Answered, Device, Failed, ModuleVersion, Outcome
from auditor.runs.journal import Journal, line_of
from auditor.text.formatting import utc

pytestmark = pytest.mark.anyio

DEVICE = Device("demo", "k1h9drZble", "device001", "OZs5")
NIGHT = 1_795_312_803.123


def answered(number: int, modules: tuple[ModuleVersion, ...] = ()) -> Answered:
    device = Device("demo", "p1", f"device{number}", None)
    return Answered(device, "ok" if modules else "empty", modules, len(modules), 1, 1, None, NIGHT)


def failed(number: int) -> Failed:
    return Failed(Device("demo", "p1", f"device{number}", None), "X", "no", None, 5, None, NIGHT)


def test_a_line_of_devices_is_exactly_the_contract_s() -> None:
    outcome = Answered(DEVICE, "ok", (ModuleVersion("ble", "1.0"),), 1, 1, 1, "47f85a55", NIGHT)
    assert line_of(outcome) == (
        b'{"account":"demo","product_key":"k1h9drZble","device_name":"device001","iot_id":"OZs5",'
        b'"status":"ok","modules":[{"module_name":"ble","module_version":"1.0"}],"total":1,"pages":1,'
        b'"attempts":1,"request_id":"47f85a55","audited_at":"2026-11-22T02:00:03.123Z"}\n'
    )


def test_a_line_of_failures_is_exactly_the_contract_s() -> None:
    outcome = Failed(Device("demo", None, None, "OZs5"), "auditor.Timeout", "no answer", None, 5, None, NIGHT)
    assert line_of(outcome) == (
        b'{"account":"demo","product_key":null,"device_name":null,"iot_id":"OZs5",'
        b'"status":"failed","code":"auditor.Timeout","message":"no answer","http_status":null,"attempts":5,'
        b'"request_id":null,"failed_at":"2026-11-22T02:00:03.123Z"}\n'
    )


@given(st.floats(min_value=0, max_value=253_402_300_799))
def test_a_time_is_the_millisecond_that_datetime_says(seconds: float) -> None:
    text = utc(seconds)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text)
    # Both sides cut or round a binary fraction, so they may fall on either side of a millisecond.
    said = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert abs(datetime.fromisoformat(text) - said) <= timedelta(milliseconds=1, microseconds=50)


@given(st.integers(0, 253_402_300_799_999))
def test_whole_milliseconds_stay_what_they_are(milliseconds: int) -> None:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    said = datetime.fromisoformat(utc(milliseconds / 1000))
    assert said == moment


@given(*[st.text(st.characters(exclude_categories=["Cs"])) for _ in range(4)])
def test_whatever_a_device_calls_itself_comes_back_from_one_line(
    product: str, name: str, module: str, version: str
) -> None:
    outcome = Answered(Device("demo", product, name, None), "ok", (ModuleVersion(module, version),), 1, 1, 1, None, 0)
    line = line_of(outcome)
    assert line.count(b"\n") == 1
    assert line.endswith(b"}\n")
    assert len(line.decode().splitlines(keepends=False)[0]) > 0
    record = orjson.loads(line)
    assert (record["product_key"], record["device_name"]) == (product, name)
    assert record["modules"] == [{"module_name": module, "module_version": version}]


async def test_hostile_names_are_escaped_but_utf_8_stays_readable() -> None:
    line = line_of(answered(1, (ModuleVersion('q"\n\0\x1b[31m', "😀é"),)))
    assert b'"module_name":"q\\"\\n\\u0000\\u001b[31m"' in line
    assert '"module_version":"😀é"'.encode() in line


@pytest.fixture
def paths(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "devices.jsonl", tmp_path / "failures.jsonl"


async def test_each_kind_goes_to_its_file_in_order_and_is_counted(paths: tuple[Path, Path]) -> None:
    outcomes: list[Outcome] = [
        answered(0),
        failed(1),
        answered(2, (ModuleVersion("ble", "1"),)),
        Answered(DEVICE, "not_found", (), 0, 0, 1, None, NIGHT),
        failed(4),
        answered(5),
    ]
    with Journal(*paths) as journal:
        for outcome in outcomes:
            journal.write(outcome)
        assert journal.counts == {"ok": 1, "empty": 2, "not_found": 1, "failed": 2}
    assert paths[0].read_bytes() == b"".join(line_of(o) for o in outcomes if isinstance(o, Answered))
    assert paths[1].read_bytes() == b"".join(line_of(o) for o in outcomes if isinstance(o, Failed))


async def test_a_journal_appends_to_what_is_there(paths: tuple[Path, Path]) -> None:
    for number in range(2):
        with Journal(*paths) as journal:
            journal.write(answered(number))
    assert paths[0].read_bytes() == line_of(answered(0)) + line_of(answered(1))
    assert paths[1].read_bytes() == b""


async def test_a_line_is_with_the_operating_system_before_it_counts(paths: tuple[Path, Path]) -> None:
    with Journal(*paths) as journal:
        for number in range(3):
            journal.write(answered(number))
            assert paths[0].read_bytes() == b"".join(line_of(answered(before)) for before in range(number + 1))
            assert journal.counts["empty"] == number + 1
        journal.write(failed(3))
        assert paths[1].read_bytes() == line_of(failed(3))


async def test_counts_of_earlier_stretches_are_gone_on_with(paths: tuple[Path, Path]) -> None:
    with Journal(*paths, {"ok": 5, "empty": 1, "pending": 7}) as journal:
        journal.write(answered(1))
        assert journal.counts == {"ok": 5, "empty": 2, "not_found": 0, "failed": 0}


async def test_a_reader_at_any_moment_sees_a_beginning_of_the_file(paths: tuple[Path, Path]) -> None:
    seen, done = [], threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(paths[0].read_bytes())

    with Journal(*paths) as journal:
        reader = threading.Thread(target=read)
        reader.start()
        try:
            for number in range(3000):
                journal.write(answered(number, (ModuleVersion("ble", "1" * (number % 200)),)))
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
        with Journal(Path("/dev/full"), tmp_path / "failures.jsonl") as journal:
            with pytest.raises(RunNotWritableError, match=r"^/dev/full cannot be written: No space left.*; free some"):
                journal.write(answered(1))
            assert journal.counts["empty"] == 0

    # A device is no file: closing it says so as well, by EINVAL for the sync.
    with pytest.raises(RunNotWritableError, match="/dev/full cannot be written"):
        await write()


@pytest.mark.parametrize("broken", [0, 1])
async def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, broken: int) -> None:
    places = [tmp_path / "devices.jsonl", tmp_path / "failures.jsonl"]
    places[broken].mkdir()
    sentence = rf"{places[broken].name} cannot be written: Is a directory"
    with pytest.raises(RunNotWritableError, match=sentence), Journal(places[0], places[1]):
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


async def test_short_writes_are_gone_on_with(paths: tuple[Path, Path], small_writes: list[int]) -> None:
    with Journal(*paths) as journal:
        journal.write(answered(1))
        journal.write(answered(2))
    assert paths[0].read_bytes() == line_of(answered(1)) + line_of(answered(2))


async def test_a_line_that_the_disk_did_not_take_is_taken_back_and_nothing_follows_it(
    paths: tuple[Path, Path], small_writes: list[int]
) -> None:
    with Journal(*paths) as journal:
        journal.write(answered(1))
        small_writes.append(25)
        with pytest.raises(RunNotWritableError, match=r"devices\.jsonl cannot be written: No space left.*; free some"):
            journal.write(answered(2))
        assert small_writes == []  # there is room again
        with pytest.raises(RunNotWritableError, match="No space left"):
            journal.write(answered(3))
        journal.write(failed(4))
        assert journal.counts == {"ok": 0, "empty": 1, "not_found": 0, "failed": 1}
    assert paths[0].read_bytes() == line_of(answered(1))
    assert paths[1].read_bytes() == line_of(failed(4))


async def test_a_torn_line_that_cannot_be_taken_back_is_the_last_one(
    paths: tuple[Path, Path], small_writes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int, size: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("auditor.storage.files.os.ftruncate", broken)
    with Journal(*paths) as journal:
        journal.write(answered(1))
        small_writes.append(25)
        for number in (2, 3):
            with pytest.raises(RunNotWritableError, match="No space left"):
                journal.write(answered(number))
    assert paths[0].read_bytes() == line_of(answered(1)) + line_of(answered(2))[:25]


async def test_what_was_written_before_an_error_in_the_block_is_kept(paths: tuple[Path, Path]) -> None:
    async def write() -> None:
        with Journal(*paths) as journal:
            journal.write(answered(1))
            journal.write(failed(2))
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        await write()
    assert paths[0].read_bytes() == line_of(answered(1))
    assert paths[1].read_bytes() == line_of(failed(2))
