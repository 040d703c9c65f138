"""What follows a run: it is judged, counted, shown and told. The run is sealed by then, and none of it can touch that.

In this order: the policy is judged, the metrics, the report and the Excel file are written, the webhook is posted. What
goes wrong is a sentence; the next step is taken all the same, and the audit's exit code stays. Only the policy has a
say in that: a run that ended with 0 ends with 4 if a rule of severity ``error`` is violated, or if it could not be
judged, for nobody knows then whether it may pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio
import structlog

from auditor.errors import AuditorError, PolicyError, SettingsError
from auditor.hooks.prepare import Following
from auditor.runs.folder import INVENTORY_XLSX, REPORT_HTML

if TYPE_CHECKING:
    from auditor.policy.evaluate import Judgement
    from auditor.policy.model import Rules


T = TypeVar("T")


log = structlog.get_logger()


_INTERRUPTED = "Query interrupted"
"""What DuckDB makes of a KeyboardInterrupt that comes while a query is at work."""


@dataclass(frozen=True, slots=True)
class Followed:
    """What came of it.

    Attributes:
        exit_code: the audit's; or 4 if that was 0, and the policy is violated or could not be judged.
        judgement: what judging the run came to; None if there is no policy.
        problems: what could not be done, a sentence each.
        written: the files that were written.
        posted: whether the webhook was posted.
    """

    exit_code: int
    judgement: "Judgement | None" = None
    problems: tuple[str, ...] = ()
    written: tuple[Path, ...] = ()
    posted: bool = False


def follow_run(run: str | Path, following: Following, *, exit_code: int = 0) -> Followed:
    """Does what is to follow a run, as this module's docstring tells; call it outside of an event loop.

    Everything is judged by one point in time, so that exit code, metrics and report say the same.

    Args:
        run: the run folder.
        following: from ``prepare_following``.
        exit_code: what the audit came to.

    Returns:
        What came of it; whatever goes wrong is in there, and nothing is raised.

    Raises:
        KeyboardInterrupt: somebody does not wait for it; what is left is not done.
    """
    now = datetime.now(UTC)
    folder = Path(run)
    problems: list[str] = []
    judgement: Judgement | None = None
    if following.rules is not None or following.unjudged is not None:
        judgement = _judged(folder, following, now, problems)
        exit_code = exit_code or (PolicyError.exit_code if judgement.failed else 0)
    written = tuple(_write_all(folder, following, judgement, now, problems))
    followed = Followed(exit_code, judgement, tuple(problems), written)
    posted = _tried("the webhook could not be posted", partial(_tell, folder, following, followed), problems)
    return replace(followed, problems=tuple(problems), posted=bool(posted))


def _judged(folder: Path, following: Following, now: datetime, problems: list[str]) -> "Judgement":
    from auditor.policy.evaluate import Judgement, judge

    def step() -> Judgement:
        if following.rules is None:
            raise SettingsError(following.unjudged or "")
        return judge(folder, following.rules, now=now)

    judgement = _tried("the policy could not be judged", step, problems)
    return judgement or Judgement(failed=True, problem=problems[-1].partition(": ")[2])


def _write_all(
    folder: Path, following: Following, judgement: "Judgement | None", now: datetime, problems: list[str]
) -> Iterator[Path]:
    """Writes the files that are wished, and gives the paths of those that could be written."""
    report = following.report
    html, excel = (
        folder / name if wanted is True else Path(wanted) if wanted else None
        for wanted, name in ((report.html, REPORT_HTML), (report.excel, INVENTORY_XLSX))
    )
    for what, path, write in (
        ("metrics", None if report.metrics is None else Path(report.metrics), partial(_put_metrics, judgement)),
        ("report", html, partial(_put_html, following.rules, now)),
        ("Excel file", excel, _put_excel),
    ):
        if path is None:
            continue
        before = len(problems)
        _tried(f"the {what} could not be written", partial(write, folder, path), problems)
        if len(problems) == before:
            yield path


def _tried(what: str, step: Callable[[], T], problems: list[str]) -> T | None:
    """What a step gives; None, and a sentence more, if it fails."""
    try:
        return step()
    except AuditorError as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001  whatever it is, an audit of hours is not lost for it
        if str(error) == _INTERRUPTED:
            raise KeyboardInterrupt from None
        why = f"{type(error).__name__}: {error}"
    log.info("a step after the run failed", step=what, reason=why)
    problems.append(f"{what}: {why}")
    return None


def _put_metrics(judgement: "Judgement | None", folder: Path, path: Path) -> None:
    from auditor.hooks.prometheus import put_metrics

    put_metrics(folder, path, judgement)


def _put_html(rules: "Rules | None", now: datetime, folder: Path, path: Path) -> None:
    from auditor.report.render import write_report

    write_report(folder, path, rules=rules, now=now)


def _put_excel(folder: Path, path: Path) -> None:
    from auditor.query.run import Run
    from auditor.runs.folder import refuse_own_file
    from auditor.storage.files import replacing

    refuse_own_file(path)
    with Run(folder) as opened, replacing(path) as new:
        opened.write_inventory(new, "xlsx")


def _tell(folder: Path, following: Following, followed: Followed) -> bool:
    """Posts what became of a run; whether that was wished."""
    if following.webhook is None and following.untold is None:
        return False
    from auditor.hooks.payload import message_of
    from auditor.hooks.webhook import post

    message = message_of(folder, exit_code=followed.exit_code, judgement=followed.judgement, problems=followed.problems)
    if following.only_trouble and not message.trouble:
        return False
    if following.webhook is None:
        raise SettingsError(following.untold or "")
    anyio.run(partial(post, following.webhook, message.body, secret=following.secret))
    return True
