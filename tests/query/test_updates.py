"""Devices by the state of their update: the filter, the view of one run and that of several, and rollouts agree."""

from collections import Counter
from pathlib import Path

import pytest

from auditor.analysis.rollouts import read_rollouts
from auditor.errors import UsageError
from auditor.query.devices import select_devices
from auditor.query.filters import DeviceFilter
from auditor.query.run import Run
from auditor.query.sql import query_run, query_runs
from tests.analysis.simulated_nights import BETA, KNOWN, NEW, PRODUCTS, Fleet, released, task_status, write_night

NIGHTS = (0, 8, 16)

STATES = ("current", "failed", "offered", "reverted", "never_offered")


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fleet, dict[int, Path]]:
    fleet, directory = Fleet(7), tmp_path_factory.mktemp("nights")
    return fleet, {night: write_night(directory, fleet, night) for night in NIGHTS}


def expected(fleet: Fleet, night: int) -> dict[tuple[str, str], str]:
    """The state of the update of each device with an answer."""
    found = {}
    for product in PRODUCTS:
        for device, version in enumerate(fleet.versions[night, KNOWN, product]):
            if fleet.answered[night, KNOWN, product][device]:
                state = "current"
                if released(product, night) == NEW and version not in {NEW, BETA}:
                    status = task_status(fleet, night, product, device)
                    names = {None: "never_offered", "CANCELED": "never_offered", "FAILED": "failed"}
                    state = names.get(status, "reverted" if status == "SUCCEEDED" else "offered")
                found[product, f"device{device:04}"] = state
    return found


@pytest.mark.slow
def test_the_filter_selects_the_devices_of_a_state(nights: tuple[Fleet, dict[int, Path]]) -> None:
    fleet, folders = nights
    for night in NIGHTS[1:]:
        truth = expected(fleet, night)
        for state in (*STATES, "behind"):
            with select_devices(folders[night], DeviceFilter(update=state)) as selected:  # type: ignore[arg-type]
                rows = selected.table.to_dicts()
            found = {(row["product_key"], row["device_name"]): row["update_state"] for row in rows}
            wanted = {
                key: each for key, each in truth.items() if each == state or (state == "behind" != each != "current")
            }
            assert found == wanted, (night, state)
            assert all(row["released_version"] == released(row["product_key"], night) for row in rows)
        with select_devices(folders[night], DeviceFilter(update="behind"), group_by=["update_state"]) as selected:
            counts = {row["update_state"]: row["devices"] for row in selected.table.to_dicts()}
        assert counts == Counter(state for state in truth.values() if state != "current")


@pytest.mark.slow
def test_rollouts_and_the_view_of_all_runs_have_the_same_numbers(nights: tuple[Fleet, dict[int, Path]]) -> None:
    fleet, folders = nights
    directory = folders[0].parent
    statement = (
        "SELECT run, product_key, device_name, update_state FROM device_releases WHERE account = 'known' "
        "AND update_state IS NOT NULL"
    )
    with query_runs(directory, statement) as answer:
        rows = answer.table.to_dicts()
    for night, folder in folders.items():
        of_run = {
            (row["product_key"], row["device_name"]): row["update_state"] for row in rows if row["run"] == folder.name
        }
        assert of_run == (expected(fleet, night) if night else {})
    with query_run(folders[16], statement.replace("run, ", "")) as single:
        assert len(single.table.to_dicts()) == len(expected(fleet, 16))
    with Run(folders[16]) as run:
        states = Counter(row["update_state"] for row in run.table("device_releases").to_dicts())
    assert states["failed"] == Counter(expected(fleet, 16).values())["failed"]
    for rollout in read_rollouts(folders[16]).rollouts:
        if rollout.account == KNOWN:
            own = Counter(
                state for (product, _), state in expected(fleet, 16).items() if product == rollout.product_key
            )
            assert rollout.on_target == own["current"]
            counted = {state: getattr(rollout, state) or 0 for state in STATES[1:]}
            assert counted == {state: own[state] for state in STATES[1:]}


def test_a_run_without_releases_has_no_updates(nights: tuple[Fleet, dict[int, Path]]) -> None:
    with (
        pytest.raises(UsageError, match="set released = true"),
        select_devices(nights[1][0], DeviceFilter(update="behind")),
    ):
        pass
    with pytest.raises(UsageError, match="update: 'done' is not one of"):
        DeviceFilter(update="done")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="leave out update"):
        DeviceFilter(update="failed", missing=True)
