"""Devices by attributes, for the report: their number, the failed ones, and the share of the newest versions."""

from collections.abc import Sequence

import duckdb

from auditor.analysis.device_groups import GROUPED_MODULES, define_device_groups, group_values
from auditor.report.model import DeviceGroup, GroupSection

MAX_GROUPS = 30
"""Rows of the page's table; further groups are one row."""

_MAX_LENGTH = 400
"""Characters of a text that are read."""


def read_groups(database: duckdb.DuckDBPyConnection, names: Sequence[str]) -> GroupSection:
    """Read the devices by attributes of these names.

    Args:
        database: with the views ``devices`` and ``modules``, and the table ``versions``; see ``read_versions``.
        names: names of attributes.
    """
    combined = define_device_groups(database, names, MAX_GROUPS)
    values = [*group_values(database, names, _MAX_LENGTH, MAX_GROUPS), (None,) * len(names)]
    rows = database.execute(_GROUPS).fetchall()
    groups = [DeviceGroup(values[number], *counts) for number, *counts in rows]
    return GroupSection(tuple(names), tuple(groups[:MAX_GROUPS]), combined, groups[-1] if combined else None)


_GROUPS = f"""
  SELECT number, devices, failed, on_newest FROM (
    SELECT number, count(*) AS devices, count(*) FILTER (status = 'failed') AS failed FROM grouped_devices
    GROUP BY number
  ) LEFT JOIN (
    SELECT number, coalesce(sum(m.devices) FILTER (version_order = 'newest'), 0) / sum(m.devices) AS on_newest FROM (
      SELECT number, account, product_key, lower(module_name) AS module_key, module_version, count(*) AS devices
      FROM ({GROUPED_MODULES}) GROUP BY ALL
    ) m JOIN versions v ON m.account = v.account AND m.product_key IS NOT DISTINCT FROM v.product_key
      AND m.module_key = lower(v.module_name) AND m.module_version = v.module_version
    WHERE version_order <> 'unordered' GROUP BY number
  ) USING (number) ORDER BY number"""
