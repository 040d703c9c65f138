"""The command that judges a run by a policy.

The command that writes the report.

The command that writes a run's metrics.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from auditor.cli.console import say, tell
from auditor.cli.options import Flag
from auditor.cli.output import Out, deliver, note, print_rows
from auditor.errors import PolicyError, UsageError
from auditor.text.formatting import PIPE_WIDTH, safe

if TYPE_CHECKING:
    from auditor.policy.evaluate import Judged


PolicyFormat = Literal["table", "csv", "json", "jsonl", "parquet", "xlsx", "junit", "sarif", "markdown"]


ENDINGS: dict[str, PolicyFormat] = {".xml": "junit", ".sarif": "sarif", ".md": "markdown"}
"""How the names of files end that are for CI and chat."""


def policy(
    run: Path,
    rules: Path,
    /,
    *,
    devices: Flag = False,
    format: PolicyFormat | None = None,  # noqa: A002  the flag's name
    out: Out = None,
) -> int:
    """Whether a run is as a policy asks: minimum versions, denied ones, a rollout's share, the age of answers.

    Exits with 4 if a rule of severity error is violated. What could not be judged is told apart from what complies:
    versions that no rule orders, and devices that failed, are pending or were not drawn into a sample.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant. One that is still running is read as it stands.
    rules:
        The policy, a TOML file.
    devices:
        A row for each device and module that is violated or unparseable, instead of a row for each rule.
    format:
        How to write it: a table, unless a file tells another by its name; junit, sarif and markdown are for CI, chat.
    out:
        The file to write, such as policy.xml (JUnit), policy.sarif or policy.md, instead of standard output.
    """
    from auditor.policy.evaluate import judge_run
    from auditor.policy.exporters import summary, write_judged
    from auditor.policy.loader import load_rules

    if format is None and out is not None:
        format = ENDINGS.get(out.suffix.lower())  # noqa: A001  as above
    if devices and format in {"junit", "sarif", "markdown"}:
        raise UsageError(f"--devices is for tables; {format} has devices as examples")
    with judge_run(run, load_rules(rules)) as judged:
        note(judged.doubts)
        match format:
            case "junit" | "sarif" | "markdown":
                # Anything but a table is a file to deliver; its form is decided here.
                deliver("json", out, show=lambda: None, write=lambda path, _: write_judged(judged, path, format))
            case _:
                table = judged.violations if devices else judged.table
                show = (lambda: print_rows(table, brief=True)) if devices else (lambda: _print_results(judged))
                deliver(format, out, show=show, write=table.write)
        say(f"{safe(judged.run.folder.name)} by {safe(rules.name)}: {summary(judged)}")
        failed = [r.rule.name for r in judged.results if r.verdict == "violated" and r.rule.severity == "error"]
    if failed:
        more = f" and {len(failed) - 3:,} more" if len(failed) > 3 else ""  # noqa: PLR2004  names in a sentence
        raise PolicyError(f"the policy is violated: {', '.join(failed[:3])}{more}")
    return 0


def _print_results(judged: "Judged") -> None:
    """A line for each rule; what is wrong stands out where colours are."""
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styles = {"violated": "red", "unparseable": "yellow", "not_seen": "yellow", "compliant": "green"}
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("verdict", "severity", "rule", "found"):
        shown.add_column(name, overflow="fold", no_wrap=name in {"verdict", "severity"})
    for result in judged.results:
        style = "" if result.verdict == "violated" and result.rule.severity != "error" else styles[result.verdict]
        style = style or "yellow"
        verdict = Text(result.verdict.replace("_", " "), style=style)
        shown.add_row(verdict, result.rule.severity, safe(result.rule.name), safe(result.message))
    console.print(shown)


def report(
    run: Path,
    /,
    *,
    out: Out = None,
    rules: Path | None = None,
    history: Path | None = None,
) -> int:
    """One page for people: coverage, versions, adoption, what changed, policy, what was slow; opens anywhere.

    The file asks nothing of any network, is smaller than 2 MB for any fleet, and prints. Prints its path.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant. One that is still running is read as it stands.
    out:
        The file to write, "fleet.html" if none is given; - for standard output.
    rules:
        Judge the run by this policy.
    history:
        The directory in which older runs of the same name lie, if not the one of the run.
    """
    import sys

    from auditor.report.builder import read_page
    from auditor.report.render import render, require_extra, write_page

    require_extra()
    policy = None
    if rules is not None:
        from auditor.policy.loader import load_rules

        policy = load_rules(rules)
    page = read_page(run, rules=policy, directory=history)
    note(page.notes)
    if str(out) == "-":
        sys.stdout.buffer.write(render(page).encode())
        return 0
    written = write_page(page, Path("fleet.html") if out is None else out)
    say(f"the report is {written.stat().st_size / 1_000:,.0f} kB; open it in a browser")
    tell(safe(written))
    return 0


def metrics(run: Path, /, *, rules: Path | None = None, out: Out = None) -> int:
    """A run as Prometheus text, for node_exporter's textfile collector.

    Coverage, devices by module and version, the rules' verdicts, requests, and when the last run succeeded.

    Parameters
    ----------
    run:
        A run folder, or a directory of runs, whose newest is meant. One that is still running is read as it stands.
    rules:
        A policy, a TOML file, to judge the run by.
    out:
        The file to write, instead of standard output; it is replaced whole, and everybody may read it.
    """
    from auditor.hooks.prometheus import metrics_of, put_metrics
    from auditor.policy.evaluate import judge
    from auditor.runs.folder import find_run

    folder, judgement = find_run(run), None
    if rules is not None:
        from auditor.policy.loader import load_rules

        judgement = judge(folder, load_rules(rules))
    if out is not None and str(out) != "-":
        put_metrics(folder, out, judgement)
    else:
        sys.stdout.buffer.write(metrics_of(folder, judgement))
    return 0
