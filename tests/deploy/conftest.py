"""The thirty nights, and a Prometheus that holds them: built once, for all tests and all of their processes."""

import fcntl
import os
import pickle
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.alerts import (
    CHECKED,
    DAY,
    LAST,
    Night,
    build_nights,
    expected_firings,
    series_of,
    severity_of,
    with_time,
)
from tests.deploy.servers import RULES, backfill, prometheus


@pytest.fixture(scope="session")
def nights(tmp_path_factory: pytest.TempPathFactory) -> list[Night]:
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # which the processes of these tests share
    path = folder / "nights.pickle"
    with (folder / "nights.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            built = list(build_nights(tmp_path_factory.mktemp("nights")))
            path.write_bytes(pickle.dumps(built))
            return built
    loaded: list[Night] = pickle.loads(path.read_bytes())
    return loaded


@dataclass(frozen=True)
class History:
    """A Prometheus with the metrics of the nights, hour by hour, and the alerts that fired.

    ``start`` is the first midnight, in seconds since 1970.
    """

    address: str
    start: int


@pytest.fixture(scope="session")
def history(nights: list[Night], tmp_path_factory: pytest.TempPathFactory) -> Iterator[History]:
    with fill_prometheus(nights, tmp_path_factory.mktemp("prometheus")) as filled:
        yield filled


@contextmanager
def fill_prometheus(nights: list[Night], folder: Path) -> Iterator[History]:
    """Start a Prometheus that holds the nights."""
    start = int(time.time()) // DAY * DAY - LAST // DAY * DAY - DAY
    backfill(_samples(nights, start), folder, folder / "data")
    with prometheus(folder, data=folder / "data") as address:
        yield History(address, start)


def _samples(nights: list[Night], start: int) -> Iterator[str]:
    """Yield lines of OpenMetrics: each series, and the alerts as a Prometheus records them."""
    for name, values in series_of(nights):
        yield f"# TYPE {name.partition('{')[0]} gauge"
        ends = [since for since, _ in values[1:]] + [LAST]
        for (since, value), end in zip(values, ends, strict=True):
            if (shown := with_time(name, value, start)) is not None:
                yield from (f"{name} {shown} {start + at}" for at in CHECKED if since <= at < end)
    yield "# TYPE ALERTS gauge"
    for each in sorted(expected_firings(), key=lambda firing: firing.first):
        found = {
            "alertname": each.alert,
            "alertstate": "firing",
            "run": "nightly",
            "severity": severity_of(each.alert, RULES),
        }
        labels = ",".join(f'{name}="{value}"' for name, value in (found | dict(each.labels)).items())
        yield from (f"ALERTS{{{labels}}} 1 {start + at}" for at in CHECKED if each.first <= at < each.last)
