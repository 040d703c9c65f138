"""When an audit with a time limit ends, while the machine's clock is set, or the machine is suspended."""

import pytest

from auditor.audit.deadline import Deadline
from auditor.cli.options import LimitFlags, parse_time_limits
from auditor.concurrency import StopToken, TimeLimit, elapsed_clock
from auditor.config.loader import parse_settings
from auditor.selection.budget import BudgetEstimator

HOUR = 3_600.0
NIGHT = 1_790_000_000.0


class Machine:
    """A machine whose clock can be set; time passes when a test says so."""

    def __init__(self, wall: float = NIGHT) -> None:
        self.wall, self.up = wall, 5_000.0

    def limit(self, seconds: float | None = None, *, until: float | None = None) -> TimeLimit:
        return TimeLimit(seconds, until=until, wall_clock=lambda: self.wall, elapsed=lambda: self.up)

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.up += seconds

    def set_clock(self, seconds: float) -> None:
        self.wall += seconds

    def hours_until_stopped(self, limit: TimeLimit, set_clock: float = 0.0) -> float:
        """Run an audit whose clock is set by some seconds after an hour; return the hours that it takes."""
        stop = StopToken()
        deadline, began = Deadline(limit, stop, 1_000), self.up
        for minute in range(12 * 60):
            if minute == 60:
                self.set_clock(set_clock)
            deadline.check(1_000)
            if stop.reason is not None:
                assert not stop.interrupted
                break
            self.wait(60.0)
        return round((self.up - began) / HOUR, 1)


@pytest.mark.parametrize(
    "seconds", [-40 * 24 * HOUR, -HOUR, -60.0, 60.0, HOUR, 3 * HOUR, 40 * 24 * HOUR, 50 * 365 * 24 * HOUR]
)
def test_a_length_of_time_does_not_change_when_the_clock_is_set(seconds: float) -> None:
    machine = Machine()
    assert machine.hours_until_stopped(machine.limit(4 * HOUR), seconds) == 4.0


def test_a_length_of_time_is_kept_on_a_board_that_starts_in_1970() -> None:
    machine = Machine(wall=60.0)
    assert machine.hours_until_stopped(machine.limit(4 * HOUR), NIGHT) == 4.0


@pytest.mark.parametrize("seconds", [-40 * 24 * HOUR, -HOUR, -60.0])
def test_a_clock_that_is_set_back_does_not_prolong_an_audit_with_a_time_of_day(seconds: float) -> None:
    machine = Machine()
    assert machine.hours_until_stopped(machine.limit(until=NIGHT + 4 * HOUR), seconds) == 4.0


@pytest.mark.parametrize(("seconds", "hours"), [(HOUR, 3.0), (2 * HOUR, 2.0), (3 * HOUR, 1.0), (40 * 24 * HOUR, 1.0)])
def test_a_time_of_day_is_reached_when_the_clock_shows_it(seconds: float, hours: float) -> None:
    machine = Machine()
    assert machine.hours_until_stopped(machine.limit(until=NIGHT + 4 * HOUR), seconds) == hours


@pytest.mark.parametrize(("seconds", "until"), [(2 * HOUR, NIGHT + 4 * HOUR), (4 * HOUR, NIGHT + 2 * HOUR)])
def test_of_two_limits_the_earlier_one_counts(seconds: float, until: float) -> None:
    machine = Machine()
    assert machine.hours_until_stopped(machine.limit(seconds, until=until)) == 2.0


def test_a_suspended_machine_uses_up_the_time() -> None:
    machine = Machine()
    limit = machine.limit(4 * HOUR)
    machine.wait(5 * HOUR)  # the clock that counts suspended hours, too
    assert limit.remaining() == -HOUR


def test_without_a_limit_nothing_ends() -> None:
    machine = Machine()
    limit = machine.limit()
    assert not limit.is_set
    assert machine.hours_until_stopped(limit, 40 * 24 * HOUR) == 12.0


def test_a_budget_of_time_does_not_change_when_the_clock_is_set() -> None:
    account = {"name": "a", "endpoint": "http://127.0.0.1:1/", "calls_per_second": 10, "fleet": {"file": "fleet.csv"}}
    keys = {"access_key_id": "k", "access_key_secret": {"env": "S"}}
    settings = parse_settings({"name": "n", "account": [account | keys]})
    machine = Machine()
    budget = BudgetEstimator(settings, None, machine.limit(HOUR))
    machine.wait(HOUR / 2)
    for seconds in (-HOUR, 3 * HOUR):
        machine.set_clock(seconds)
        found = budget.estimate(settings.account[0], sent=0)
        assert found is not None
        assert found.limit == HOUR / 2 * 10


def test_the_flags_say_which_kind_of_limit_they_are() -> None:
    until, seconds = parse_time_limits(LimitFlags(deadline="2999-01-01T06:00+00:00", duration="1h30m"))
    assert seconds == 5_400.0
    assert until == 32_472_165_600.0


def test_the_system_s_clock_advances_and_counts_no_date() -> None:
    first = elapsed_clock()
    assert first <= elapsed_clock() < 50 * 365 * 24 * HOUR
