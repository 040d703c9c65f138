"""Commands that evaluate and publish a run: policy, report and metrics."""

import io
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from auditor.cli.console import print_error, print_line, print_note, print_notes, print_path
from auditor.cli.options import OUTPUT, Flag, OutputPath, ReadPath, RunAddress, read_from, split_names
from auditor.cli.output import (
    ALL_ROWS,
    MAX_TABLE_ROWS,
    MIN_SENTENCE_WIDTH,
    WORD_STYLES,
    Column,
    emit,
    emit_file,
    is_stdout,
    print_columns,
    print_rows,
    print_warnings,
    write_to_stdout,
)
from auditor.errors import PolicyError, UsageError
from auditor.text.formats import POLICY_REPORT_FORMATS, MetricsFormat, PolicyReportFormat, TableFormat
from auditor.text.formatting import safe
from auditor.text.shell import quote_path

if TYPE_CHECKING:
    from auditor.config.settings import Settings
    from auditor.policy.evaluate import PolicyReport
    from auditor.policy.model import Policy


PolicyFormat = Literal["table", TableFormat, PolicyReportFormat]

REPORT_ENDINGS: dict[str, PolicyReportFormat] = {".xml": "junit", ".sarif": "sarif", ".md": "markdown"}
"""Formats for CI and chat, by the ending of the file's name."""

MAX_RULE_NAMES = 3
"""Violated rules that the error names."""

Rules = Annotated[Path, Parameter(help="Policy, a TOML file of rules; see configs/rules.toml.")]

AttributesOption = Annotated[
    str | None, Parameter(help="Count devices by these attributes, too, such as site,ring; at most 4.")
]

RulesOption = Annotated[Path | None, Parameter(help="Evaluate this policy, too.")]


def policy(
    run: ReadPath,
    rules: Rules,
    /,
    *,
    devices: Flag = False,
    rule: str | None = None,
    format: Annotated[PolicyFormat | None, Parameter(group=OUTPUT)] = None,  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Check a run against policy rules.

    Rules are minimum versions, denied versions, the share of a rollout, the age of results, and more. Devices without a
    result and versions that cannot be compared are reported separately, never as compliant.

    Parameters
    ----------
    devices:
        List devices and modules that are violated or unparseable, instead of rules.
    rule:
        Check only the rule with this name.
    format:
        Write this format; default: table, or as the file's name ends: .xml is junit, .sarif sarif, .md markdown.
    """
    from auditor.policy.evaluate import evaluate_policy
    from auditor.policy.exporters import export_policy_report, summarize_verdicts
    from auditor.policy.loader import load_policy

    if format is None and out is not None:
        format = REPORT_ENDINGS.get(out.suffix.lower())  # noqa: A001  as above
    if devices and format in POLICY_REPORT_FORMATS:
        raise UsageError(f"--devices needs a table; {format} lists devices as examples")
    loaded = load_policy(rules)
    if rule is not None:
        loaded = loaded.restricted(rule)
    with evaluate_policy(read_from(run), loaded) as result:
        print_warnings(result.warnings)
        match format:
            case "junit" | "sarif" | "markdown":
                emit_file(out, lambda path: export_policy_report(result, path, format))
            case _:
                table = result.violations if devices else result.table
                show = (lambda: _print_violations(result)) if devices else (lambda: _print_results(result))
                emit(format, out, show=show, write=table.write)
        print_error(f"{safe(result.run.folder.name)} by {safe(rules.name)}: {summarize_verdicts(result)}")
        violated = [r.rule.name for r in result.results if r.verdict == "violated" and r.rule.severity == "error"]
    if violated:
        more = f" and {len(violated) - MAX_RULE_NAMES:,} more" if len(violated) > MAX_RULE_NAMES else ""
        raise PolicyError(f"the policy is violated: {', '.join(violated[:MAX_RULE_NAMES])}{more}")
    return 0


def _print_results(result: "PolicyReport") -> None:
    """Print a row for each rule, with problems in colour."""
    from rich.text import Text

    verdict, severity = Column("verdict", []), Column("severity", [], drop=1)
    rule, found = (Column(name, [], min_sentence=MIN_SENTENCE_WIDTH) for name in ("rule", "found"))
    for each in result.results:
        warning = each.verdict == "violated" and each.rule.severity != "error"
        verdict.cells.append(
            Text(each.verdict.replace("_", " "), style="yellow" if warning else WORD_STYLES[each.verdict])
        )
        severity.cells.append(each.rule.severity)
        rule.cells.append(safe(each.rule.name))
        found.cells.append(safe(each.message))
    print_columns([verdict, severity, rule, found])


def _print_violations(result: "PolicyReport") -> None:
    """Print a row for each violation; if they are too many for a table, print one table for each rule."""
    if result.violation_count <= MAX_TABLE_ROWS or len(result.results) == 1:
        print_rows(result.violations, brief=True)
        return
    for each, table in zip(result.results, result.examples, strict=True):
        if each.violated + each.unparseable:
            print_line(f"{safe(each.rule.name)}:")
            print_rows(table, brief=True)
    print_note(f"up to {MAX_TABLE_ROWS:,} rows of each rule; --rule NAME shows one rule, and {ALL_ROWS}")


def report(
    run: ReadPath,
    /,
    *,
    rules: RulesOption = None,
    group_by: AttributesOption = None,
    history: Path | None = None,
    out: Annotated[OutputPath, Parameter(help="Write this file; - is standard output.")] = None,
) -> int:
    """Write a self-contained HTML report.

    Its first screen says whether the fleet is healthy, whether rollouts move, and what needs attention, with commands
    to copy. It is below 2 MB for any fleet, loads nothing from a network, and prints on two to three pages. Without -o
    the file is fleet.html. Print the file's path.

    Parameters
    ----------
    rules:
        Evaluate these rules. Those in the settings of the run are only named, since a run folder is data.
    history:
        Read older runs of the same name from this directory; default: the directory of the run.
    """
    from auditor.query.describe import find_rules
    from auditor.report.builder import build_report
    from auditor.report.render import render_html, require_extra, write_html

    require_extra()
    folder = read_from(run)
    groups = _parse_attributes(group_by, folder)
    page = build_report(folder, policy=_load_policy(rules), directory=history, group_by=groups)
    print_notes(page.caveats)
    own_rules = find_rules(page.manifest)
    if rules is None and own_rules is not None:
        print_note(f"the rules of the run are not evaluated; add --rules {quote_path(own_rules)}")
    if out is not None and is_stdout(out):
        write_to_stdout(io.BytesIO(render_html(page).encode()))
        return 0
    path = write_html(page, Path("fleet.html") if out is None else out)
    if sys.stdout.isatty():
        print_error(f"wrote {safe(path)} ({path.stat().st_size / 1_000:,.0f} kB)")
    else:
        print_path(path)
    return 0


def metrics(
    run: RunAddress,
    /,
    *,
    settings: Path | None = None,
    rules: RulesOption = None,
    group_by: AttributesOption = None,
    modules: Annotated[str | None, Parameter(group=OUTPUT)] = None,
    max_series: Annotated[int | None, Parameter(group=OUTPUT)] = None,
    format: Annotated[MetricsFormat, Parameter(group=OUTPUT)] = "prometheus",  # noqa: A002  the flag's name
    out: OutputPath = None,
) -> int:
    """Write a run as Prometheus metrics, for node_exporter's textfile collector.

    The metrics are coverage, devices by module and version, verdicts of rules, requests, and the time of the last
    success. The file is replaced atomically and is readable for all users. In a directory, use its newest run of the
    whole fleet, also if that failed. If the run was cut, fetch its sealed files first.

    Parameters
    ----------
    settings:
        Take policy, group_by and [metrics] from this settings file, so that the file has the series that a run with it
        writes. The other flags replace what they are about.
    modules:
        Write series only of modules whose names match one of these patterns, such as mcu,ble*; default: all.
    max_series:
        Write at most INT series of a metric, by default 1000: those with the most devices. Count the others in
        auditor_…_omitted.
    format:
        Write the text format of Prometheus, which node_exporter reads, or OpenMetrics.
    """
    from msgspec.structs import replace

    from auditor.cli.commands.cluster import fetch_temporarily, is_cluster_run
    from auditor.config.loader import load_settings
    from auditor.config.sections import METRIC_SERIES
    from auditor.config.settings import Settings
    from auditor.hooks.prepare import describe_wrong_name
    from auditor.hooks.prometheus import write_metrics_file
    from auditor.runs.folder import find_run

    if max_series is not None and max_series not in METRIC_SERIES:
        raise UsageError(f"--max-series {max_series}: give a number from {METRIC_SERIES[0]} to {METRIC_SERIES[-1]:,}")
    to_file = None if out is None or is_stdout(out) else out
    if to_file is not None and (problem := describe_wrong_name(to_file, "metrics")) is not None:
        raise UsageError(f"-o: {problem}")
    configured = Settings(account=()) if settings is None else load_settings(settings)
    flags = {"modules": split_names(modules) if modules is not None else None, "max_series": max_series}
    options = {key: value for key, value in flags.items() if value is not None}
    configured = replace(configured, metrics=replace(configured.metrics, **options))
    with fetch_temporarily(run) if is_cluster_run(run) else nullcontext(find_run(Path(run), "fleet")) as folder:
        text = _render_metrics(folder, rules, group_by, configured, format)
    if to_file is not None:
        write_metrics_file(text, to_file)
    else:
        write_to_stdout(io.BytesIO(text))
    return 0


def _render_metrics(
    folder: Path, rules: Path | None, group_by: str | None, settings: "Settings", format_: MetricsFormat
) -> bytes:
    from auditor.hooks.prepare import load_configured_policy
    from auditor.hooks.prometheus import render_metrics
    from auditor.policy.evaluate import summarize_policy

    loaded = load_configured_policy(settings) if rules is None else _load_policy(rules)
    groups = settings.report.group_by if group_by is None else _parse_attributes(group_by, folder)
    evaluated = None if loaded is None else summarize_policy(folder, loaded)
    return render_metrics(folder, evaluated, groups, options=settings.metrics, format_=format_)


def _parse_attributes(text: str | None, folder: Path) -> tuple[str, ...]:
    """Return the attributes in a flag's text; raise UsageError if there are too many, or no device has one."""
    from auditor.analysis.device_groups import require_group_names
    from auditor.config.hook_validation import MAX_GROUP_NAMES

    names = tuple(dict.fromkeys(split_names(text)))
    if len(names) > MAX_GROUP_NAMES:
        raise UsageError(f"--group-by has {len(names)} attributes; give at most {MAX_GROUP_NAMES}")
    require_group_names(folder, names)
    return names


def _load_policy(rules: Path | None) -> "Policy | None":
    if rules is None:
        return None
    from auditor.policy.loader import load_policy

    return load_policy(rules)
