"""Panels of the dashboard: a number, a chart, a table, and their queries and colours."""

from grafana_foundation_sdk.builders import dashboard as builder
from grafana_foundation_sdk.builders import prometheus, stat, table, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
)
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat


def source() -> model.DataSourceRef:
    """Return the reference to the data source that a person selects."""
    return model.DataSourceRef(type_val="prometheus", uid="${datasource}")


def query(expression: str, legend: str = "", *, ref: str = "A") -> prometheus.Dataquery:
    """Return a query over the time range of the dashboard."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).range().ref_id(ref).datasource(source())


def instant(expression: str, legend: str = "", *, ref: str = "A") -> prometheus.Dataquery:
    """Return a query of the values at the end of the time range."""
    return prometheus.Dataquery().expr(expression).legend_format(legend).instant().ref_id(ref).datasource(source())


def rows_of(expression: str, ref: str = "A") -> prometheus.Dataquery:
    """Return a query whose series are rows of a table."""
    return instant(expression, ref=ref).format(PromQueryFormat.TABLE)


def steps(*limits: tuple[float | None, str]) -> builder.ThresholdsConfig:
    """Return colours from limits on; the first limit is None."""
    found = [model.Threshold(value=value, color=color) for value, color in limits]
    return builder.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(found)


def colours(found: dict[str, str]) -> model.ValueMap:
    """Return the colours of texts."""
    return model.ValueMap(
        {name: model.ValueMappingResult(color=color, index=n) for n, (name, color) in enumerate(found.items())}
    )


def number(
    title: str, description: str, target: prometheus.Dataquery, thresholds: builder.ThresholdsConfig
) -> stat.Panel:
    """Return a panel with one number."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .datasource(source())
        .height(4)
        .span(3)
        .with_target(target)
        .thresholds(thresholds)
        .color_mode(common.BigValueColorMode.VALUE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    )


def legend(*, visible: bool = True) -> VizLegendOptions:
    """Return a legend below a chart."""
    options = VizLegendOptions().display_mode(common.LegendDisplayMode.LIST)
    return options.placement(common.LegendPlacement.BOTTOM).show_legend(visible).calcs([])


def chart(title: str, description: str, *targets: prometheus.Dataquery, width: int = 12) -> timeseries.Panel:
    """Return a chart of series over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(source())
        .height(8)
        .span(width)
        .min(0)
        .line_width(2)
        .show_points(common.VisibilityMode.NEVER)
        .legend(legend())
    )
    for target in targets:
        panel = panel.with_target(target)
    return panel


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """Return a chart whose series are stacked areas."""
    return panel.stacking(StackingConfig().mode(common.StackingMode.NORMAL).group("A")).fill_opacity(30).line_width(1)


def with_limit(panel: timeseries.Panel, *limits: tuple[float | None, str]) -> timeseries.Panel:
    """Return a chart with dashed lines at the limits of the alerts."""
    style = GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
    return panel.thresholds(steps(*limits)).thresholds_style(style)


def rows(
    title: str,
    description: str,
    *targets: prometheus.Dataquery,
    width: int,
    renamed: dict[str, str],
    hidden: tuple[str, ...] = (),
) -> table.Panel:
    """Return a table: series that agree in their labels are one row."""
    panel = table.Panel().title(title).description(description).datasource(source()).height(8).span(width)
    for target in targets:
        panel = panel.with_target(target)
    order = {name: place for place, name in enumerate(renamed)}
    options = {"excludeByName": dict.fromkeys(("Time", *hidden), True), "indexByName": order, "renameByName": renamed}
    merge = model.DataTransformerConfig(id_val="merge", options={})
    return panel.with_transformation(merge).with_transformation(
        model.DataTransformerConfig(id_val="organize", options=options)
    )


def coloured(panel: table.Panel, column: str, found: dict[str, str]) -> table.Panel:
    """Return a table with the colours of a column's texts."""
    cell = model.DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"})
    return panel.override_by_name(column, [cell, model.DynamicConfigValue(id_val="mappings", value=[colours(found)])])
