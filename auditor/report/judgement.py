"""What judging a run by rules came to, kept when its rows are closed again."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from auditor.inventory.rule_results import RuleResult
    from auditor.inventory.rules import Rules


@dataclass(frozen=True, slots=True)
class Judgement:
    """What judging a run came to.

    Attributes:
        results: what each rule came to; none if the run could not be judged.
        failed: a rule of severity ``error`` is violated.
        doubts: why the run's numbers, or its rules, are to be doubted, a sentence each.
        problem: why the run could not be judged; None if it was.
    """

    results: "tuple[RuleResult, ...]" = ()
    failed: bool = False
    doubts: tuple[str, ...] = ()
    problem: str | None = None

    @property
    def violated(self) -> "tuple[RuleResult, ...]":
        """The rules that are violated, the most severe ones first."""
        found = (each for each in self.results if each.verdict == "violated")
        return tuple(sorted(found, key=lambda each: ("error", "warning", "note").index(each.rule.severity)))


def judge(run: str | Path, rules: "Rules", *, now: datetime | None = None) -> Judgement:
    """What a run comes to by these rules, by the time ``now``, which is the clock's if it is None.

    Raises:
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: the system's temporary folder cannot be written.
    """
    from auditor.inventory.policy import judge_run

    with judge_run(run, rules, now=now) as judged:
        return Judgement(judged.results, judged.failed, judged.doubts)
