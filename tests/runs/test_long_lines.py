"""A fleet whose every device has hundreds of modules: lines so long that a block of them is more than DuckDB may hold."""

import pytest

import auditor
from auditor.models import DeviceResult
from auditor.runs.recovery import write_remaining_devices
from auditor.runs.seal import seal_run
from auditor.storage.database import DEFAULT_MEMORY
from tests.runs.run_folders import Built, named, ok, running

MODULES = 600


@pytest.fixture(scope="module")
def long_lined(tmp_path_factory: pytest.TempPathFactory) -> Built:
    fleet = [named(number) for number in range(1_600)]
    versions = [f"{number}.4.2-{'x' * 30}" for number in range(10)]
    outcomes: list[DeviceResult] = [
        ok(device, *((f"module-{module:04}-{'y' * 20}", versions[module % 10]) for module in range(MODULES)))
        for device in fleet[:1_500]
    ]
    return running(tmp_path_factory.mktemp("runs") / "run", fleet, outcomes)


@pytest.mark.slow
def test_the_run_needs_more_than_the_default_memory(long_lined: Built) -> None:
    assert (long_lined.folder / "devices.jsonl").stat().st_size > int(DEFAULT_MEMORY.removesuffix("MB")) * 1_000_000


@pytest.mark.slow
def test_the_live_run_is_read(long_lined: Built) -> None:
    with auditor.Run(long_lined.folder) as run:
        assert (run.devices.ok, run.devices.pending) == (1_500, 100)
        assert sum(version.devices for version in run.inventory()) == 1_500 * MODULES


@pytest.mark.slow
def test_its_remaining_devices_are_found(long_lined: Built) -> None:
    pending = write_remaining_devices(long_lined.folder, long_lined.folder / "left.parquet")
    assert (pending.counts.ok, pending.counts.pending) == (1_500, 100)


@pytest.mark.slow
def test_it_is_sealed(long_lined: Built) -> None:
    assert seal_run(long_lined.folder).devices.ok == 1_500
