"""The command that judges a run by a policy."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from auditor.commands.options import Flag
from auditor.commands.output import Out, deliver, note, print_rows
from auditor.errors import PolicyError, UsageError
from auditor.terminal import PIPE_WIDTH, safe, say

if TYPE_CHECKING:
    from auditor.inventory.policy import Judged

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
    from auditor.inventory.policy import judge_run
    from auditor.inventory.policy_formats import summary, write_judged
    from auditor.inventory.rules import load_rules

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
