"""The formats of results and of fleet files: their names, and how they are listed in a sentence."""

from collections.abc import Iterable
from typing import Literal, get_args

TableFormat = Literal["csv", "json", "jsonl", "parquet", "xlsx"]
"""Formats that ``ResultTable.write`` writes. The ending of a file's name is the name of its format."""

PolicyReportFormat = Literal["junit", "sarif", "markdown"]
"""Further formats of a policy report, for CI and chat."""

MetricsFormat = Literal["prometheus", "openmetrics"]
"""Formats of metrics; node_exporter reads the first one."""

FleetFormat = Literal["csv", "jsonl", "parquet"]
"""Formats of a fleet file that ``auditor fleet`` writes."""

TABLE_FORMATS: tuple[TableFormat, ...] = get_args(TableFormat)
POLICY_REPORT_FORMATS: tuple[PolicyReportFormat, ...] = get_args(PolicyReportFormat)
FLEET_FORMATS: tuple[FleetFormat, ...] = get_args(FleetFormat)

BINARY_FORMATS = frozenset({"parquet", "xlsx"})
"""Formats that are not shown on a terminal."""


def list_formats(formats: Iterable[str]) -> str:
    """Return names of formats as a sentence lists them: ``csv, json or xlsx``."""
    *names, last = formats
    return f"{', '.join(names)} or {last}" if names else last
