"""What a run tells of whom it chose to ask, where that was not the whole fleet."""

from dataclasses import dataclass, field
from typing import Literal

from auditor.inventory.listings import RequestCounts
from auditor.model import Level, SinceRule

Strategy = Literal["since", "rolling", "sample"]
"""``since``: whoever can have changed since an earlier run. ``rolling``: as many as a budget bears. ``sample``: some at
random."""

_NO_REQUESTS = RequestCounts()


@dataclass(frozen=True, slots=True)
class AccountChoice:
    """Whom of an account's devices a run asks.

    Attributes:
        account: its name.
        asked: devices that were chosen to be asked, by reason.
        beyond: devices with a reason to be asked for which the budget was too small from the first.
        carried: devices whose known answers were chosen to be carried.
        states: devices whose states were asked, ``untold`` of them without an answer.
        requests: that this took.
        chosen_at: when that was, UTC; what is carried is so old news at the least.
    """

    account: str
    asked: dict[str, int] = field(default_factory=dict)
    beyond: int = 0
    carried: int = 0
    states: int = 0
    untold: int = 0
    requests: RequestCounts = _NO_REQUESTS
    chosen_at: str | None = None


@dataclass(frozen=True, slots=True)
class Recheck:
    """How often it was wrong to carry an answer, by asking some of the carried at random all the same.

    Attributes:
        carried: devices whose answers were to be carried, those that were asked all the same among them.
        asked: these.
        answered: those of them that were answered.
        wrong: those of them whose answer is another one by now.
        rate, low, high: the part of the carried whose answer is another one by now, with its 95% confidence interval;
            None where none was answered.
    """

    carried: int
    asked: int
    answered: int
    wrong: int
    rate: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Whom a run chose to ask; its files are ``plan.parquet`` and ``carried.parquet``.

    Attributes:
        strategy: how it chose.
        since: the folder of the earlier run whose answers are carried; None: none is.
        rule: when an answer is carried, where states tell.
        seed: of what was drawn at random.
        calls: the budget in calls; None: none was told.
        sample: so many devices were to be drawn; None: as many as the precision takes.
        precision: how well shares were to be known, as a part; None: that was not asked.
        precision_of: of which shares.
        reached: half the widest 95% confidence interval of these shares at the end; None: not asked, or nothing seen.
        spent: whether the budget ended before all that were chosen were asked.
        unreached: those of them that were not asked, and whose known answers are carried all the same.
        accounts: of each account that has chosen.
        recheck: how often it was wrong to carry; None where nothing was checked.
    """

    strategy: Strategy
    since: str | None = None
    rule: SinceRule | None = None
    seed: int = 0
    calls: int | None = None
    sample: int | None = None
    precision: float | None = None
    precision_of: Level | None = None
    reached: float | None = None
    spent: bool = False
    unreached: int = 0
    accounts: tuple[AccountChoice, ...] = ()
    recheck: Recheck | None = None
