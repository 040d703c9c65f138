"""Write a report as one HTML file that needs no network: style, script, charts and details are in it."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.errors import UsageError
from auditor.report.builder import build_report
from auditor.report.model import Report
from auditor.runs.folder import refuse_run_file
from auditor.storage.files import atomic_replace
from auditor.text.extras import describe_extra

if TYPE_CHECKING:
    from auditor.policy.model import Policy


def write_report(
    run: str | Path,
    path: str | Path,
    *,
    policy: "Policy | None" = None,
    directory: str | Path | None = None,
    now: datetime | None = None,
    group_by: Sequence[str] = (),
) -> Path:
    """Write the report of a run to a file, which is replaced atomically, and return its path.

    The same files, under the same paths, and the same ``now`` give the same bytes, fewer than 2 MB for any fleet.

    Args:
        run: a run folder, or a directory of runs, which means its newest run. A run in progress is reported as it is.
        path: the file.
        policy: the policy to evaluate; None: the report has no policy section.
        directory: the directory of earlier runs of the same name; None: the run's own.
        now: time of the report, for ages and rules; None: the current time.
        group_by: attributes by which devices are counted, too. One that no device has is empty.

    Raises:
        UsageError: the extra ``report`` is not installed.
        RunFolderError: the folder is no run, or cannot be read.
        RunNotWritableError: the file cannot be written.
    """
    require_extra()
    report = build_report(run, policy=policy, directory=directory, now=now, group_by=group_by)
    return write_html(report, Path(path))


def require_extra() -> None:
    """Raise UsageError if a package that the report needs is not installed."""
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise UsageError(f"the report needs {error.name}: {describe_extra('report')}") from None


def write_html(report: Report, path: Path) -> Path:
    """Write a report to a file, which is replaced atomically if its folder allows that, and return its path.

    Raises:
        UsageError: the extra ``report`` is not installed.
        RunNotWritableError: the file cannot be written.
    """
    html = render_html(report)
    refuse_run_file(path)
    with atomic_replace(path, or_overwrite=True) as new:
        new.write_text(html, encoding="utf-8", newline="\n")
    return path


def render_html(report: Report) -> str:
    """Render a report as HTML.

    Raises:
        UsageError: the extra ``report`` is not installed.
    """
    require_extra()
    from auditor.report.page import render_page

    return render_page(report)
