"""The report as one HTML file that asks nothing of any network: style, script and pictures are in it."""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.__about__ import VERSION
from auditor.errors import UsageError
from auditor.query.describe import age_line, limits, recheck_line, sample_line, unseen_line
from auditor.query.warnings import label_of
from auditor.report.builder import read_page
from auditor.report.filters import NOTHING, SENTENCE, age, clock, day, moment, number, part, shown
from auditor.report.model import ENOUGH, ModuleChange, Page, Row, Version
from auditor.runs.folder import refuse_own_file
from auditor.storage.files import replacing

if TYPE_CHECKING:
    from jinja2 import Environment

    from auditor.policy.model import Rules


_TABLE = 900_000
"""Bytes that the rows of the table take at most: what is left of 2 MB is more than the rest of the page needs."""


_STATES = (
    ("ok", "ok", "With modules", "answered, and told what they run"),
    ("empty", "empty", "Silent", "answered, and reported no module"),
    ("not_found", "not-found", "Not found", "the platform knows no such device"),
    ("failed", "failed", "Failed", "could not be answered"),
    ("pending", "pending", "Pending", "not asked yet"),
)


_UNDRAWN = ("unsampled", "undrawn", "Not drawn", "no part of the random sample")


_DRIFT = (
    (
        ("upgraded", "Upgraded", "modules with a newer version"),
        ("downgraded", "Downgraded", "modules with an older version"),
        ("changed", "Changed", "another version, in no order"),
        ("appeared", "Appeared", "modules of known devices that are new"),
        ("vanished", "Vanished", "modules not reported any more"),
    ),
    (
        ("joined", "Joined", "devices that are new"),
        ("left", "Left", "devices that are gone"),
        ("not_seen", "Not seen", "devices without an answer in one of the two"),
    ),
)


_WARNINGS = {
    "tampered": "These numbers are not to be relied on.",
    "running": "The audit is under way or was killed: these numbers are not of the whole fleet.",
    "aborted": "The audit was stopped: these numbers are not of the whole fleet.",
    "sample": "A random sample of the fleet: shares are estimates with 95% intervals.",
}


_MOVES = (("upgraded", "accent"), ("downgraded", "failed"), ("changed", "c3"), ("appeared", "empty"),
          ("vanished", "not-found"),
          ("same", "plain"))  # fmt: skip


def write_report(
    run: str | Path,
    path: str | Path,
    *,
    rules: "Rules | None" = None,
    directory: str | Path | None = None,
    now: datetime | None = None,
) -> Path:
    """Writes the report of a run to a file, which is replaced at once; gives its path.

    The same files and the same ``now`` give the same bytes, fewer than 2 MB for any fleet.

    Args:
        run: a run folder, or a folder of runs, whose newest is meant; one that is still running is read as it is now.
        path: the file.
        rules: what is asked of the fleet; None: nothing.
        directory: where older runs of the same name lie; None: where the run lies.
        now: when the page is written, for the age of the data; None: now.

    Raises:
        UsageError: the extra ``report`` is not installed.
        RunFolderError: it is no run, or cannot be read.
        RunNotWritableError: the file cannot be written.
    """
    require_extra()
    return write_page(read_page(run, rules=rules, directory=directory, now=now), Path(path))


def require_extra() -> None:
    """Raises UsageError where what the report needs is not installed."""
    try:
        import altair as alt  # noqa: F401
        import jinja2  # noqa: F401
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise UsageError(f"the report needs {error.name}: pip install 'auditor[report]'") from None


def write_page(page: Page, path: Path) -> Path:
    """Writes a page to a file, which is replaced at once.

    Raises:
        RunNotWritableError: the file cannot be written.
    """
    text = render(page)
    refuse_own_file(path)
    with replacing(path) as new:
        new.write_text(text, encoding="utf-8", newline="\n")
    return path


def render(page: Page) -> str:
    """A page as HTML.

    Raises:
        UsageError: the extra ``report`` is not installed.
    """
    require_extra()
    from auditor.report.charts import adoption_inks, adoption_picture, states_picture, versions_picture

    history = page.history
    adoptions = []
    if history is not None:
        adoptions = [(each, adoption_picture(each, history), adoption_inks(each)) for each in history.modules]
    whole: str = (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            version=VERSION,
            enough=ENOUGH,
            states=(*_STATES, *((_UNDRAWN,) if page.coverage.unsampled else ())),
            drift_tiles=_DRIFT,
            states_picture=states_picture(page.coverage.parts),
            modules=[(module, versions_picture(module)) for module in page.shares.modules],
            adoptions=adoptions,
            doubtful=sum(run.label is not None for run in history.runs) if history else 0,
            sampled=any("sample" in (run.label or "") for run in history.runs) if history else False,
            rows=_rows(page.shares.rows),
            warning=_warning(page.labels),
            ages=_ages(page),
            data_of=_data_of(page),
            took=_took(page),
            how_far=label_of(page.manifest.state, page.coverage.counts, page.coverage.unsampled),
        )
    )
    return whole


def _rows(rows: Iterable[Row]) -> list[Row]:
    """The rows as they are shown, as many as fit."""
    fitting, room = [], _TABLE
    for row in rows:
        texts = {
            name: shown(getattr(row, name)) for name in ("account", "product_key", "module_name", "module_version")
        }
        # A character that HTML writes out takes five bytes at most, any other four.
        room -= 180 + sum(len(text.encode()) + 4 * len(re.findall("[<>&'\"]", text)) for text in texts.values())
        if room < 0:
            break
        fitting.append(replace(row, **texts))  # type: ignore[arg-type]
    return fitting


def _warning(labels: tuple[str, ...]) -> str:
    for label in ("tampered", *_WARNINGS):
        if label in labels:
            return _WARNINGS[label]
    return "These numbers are not of the whole fleet."


def _data_of(page: Page) -> str:
    first, last = page.coverage.first, page.coverage.last
    if first is None or last is None:
        return "no answer yet"
    begin, end = clock(first).removesuffix(" UTC"), clock(last)
    day_of_end, _, hour = end.partition(", ")
    until = "" if f"{begin} UTC" == end else f" to {hour if begin.startswith(day_of_end) else end}"
    return f"data of {begin}{until or ' UTC'}, {age(first, page.written_at)} when this was written"


def _took(page: Page) -> str:
    began, ended = moment(page.manifest.started_at), moment(page.manifest.finished_at)
    if began is None or ended is None:
        return NOTHING
    seconds = max(0, int((ended - began).total_seconds()))
    hours, minutes = seconds // 3_600, seconds // 60 % 60
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _ages(page: Page) -> list[tuple[str, str, str, int]]:
    """Where the answers come from and how old they were when the run began, where some of them are carried."""
    ages = page.coverage.ages
    if not ages.carried:
        return []
    return [
        ("asked", "Asked", "answered in this run", ages.asked),
        ("day", "Up to 1 day", "carried, so old when it began", ages.day),
        ("week", "Up to 7 days", "carried from earlier runs", ages.week),
        ("older", "Older", "carried from earlier runs", ages.older),
    ]


def _parts(parts: Mapping[str, int]) -> list[tuple[str, float]]:
    fleet = sum(parts.values())
    return [(ink, 100 * parts[state] / fleet) for state, ink, _, _ in (*_STATES, _UNDRAWN)] if fleet else []


def _between(each: Row | Version) -> str:
    """The interval of a share; nothing where it is no estimate."""
    return "" if each.low is None or each.high is None else limits(each.low, each.high)


def _moves(change: ModuleChange) -> list[tuple[str, float]]:
    known = change.moved + change.same
    return [(ink, 100 * getattr(change, name) / known) for name, ink in _MOVES] if known else []


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    made = Environment(
        loader=PackageLoader("auditor.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "shown": shown, "sentence": lambda text: shown(text, SENTENCE), "number": number, "part": part, "day": day,
        "limits": lambda interval: limits(interval.low, interval.high), "recheck": recheck_line,
        "aged": age_line, "sampled": sample_line, "unseen": unseen_line,
        "clock": lambda text: clock(moment(text)), "point": clock, "parts": _parts, "between": _between,
        "moves": _moves, "begun": lambda text: text[:1].upper() + text[1:],
    }  # fmt: skip
    style, script = (_own(name) for name in ("style.css", "script.js"))
    made.globals |= {"style": Markup(style), "script": Markup(script), "csp": Markup(_policy(style, script))}  # noqa: S704  our own files
    return made


def _own(name: str) -> str:
    text = files("auditor.report").joinpath("templates", name).read_text(encoding="utf-8")
    if name != "style.css":
        return text
    from auditor.report.charts import INKS

    uses = (("fill", "fill"), ("stroke", "stroke"), ("bg", "background"))
    return text + "".join(f".{word}-{ink} {{ {how}: var(--{ink}); }}\n" for ink in INKS for word, how in uses)


def _policy(style: str, script: str) -> str:
    """What the page allows itself: this style and this script, and nothing else from anywhere."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
