"""The command that writes a run's metrics."""

import sys
from pathlib import Path

from auditor.commands.output import Out


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
    from auditor.inventory.folder import find_run
    from auditor.report.judgement import judge
    from auditor.report.metrics import metrics_of, put_metrics

    folder, judgement = find_run(run), None
    if rules is not None:
        from auditor.inventory.rules import load_rules

        judgement = judge(folder, load_rules(rules))
    if out is not None and str(out) != "-":
        put_metrics(folder, out, judgement)
    else:
        sys.stdout.buffer.write(metrics_of(folder, judgement))
    return 0
