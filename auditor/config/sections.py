"""What tables of the settings consist of, and the tables of metrics."""

import msgspec


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the settings file. Unknown keys are refused."""


class SecretSource(Section, frozen=True):
    """Where a secret is stored: in an environment variable, in a file, or in what a command prints.

    Attributes:
        env: name of the variable.
        file: path of the file.
        command: program and arguments, such as ``["pass", "show", "iot/eu"]``.
    """

    env: str | None = None
    file: str | None = None
    command: tuple[str, ...] | None = None


METRIC_SERIES = range(10, 100_001)
"""What ``max_series`` may be: a Prometheus holds some millions of series in all."""


class PushgatewaySettings(Section, frozen=True, omit_defaults=True):
    """A Pushgateway that receives the metrics, for a machine without node_exporter.

    Attributes:
        address: such as ``https://pushgateway.example:9091``.
        job: the label ``job`` of the metrics.
        username, password: what the server requires of its clients, if anything.
    """

    address: str
    job: str = "auditor"
    username: str | None = None
    password: SecretSource | None = None


class MetricsSettings(Section, frozen=True, omit_defaults=True):
    """Which metrics a run has, and when they are written. ``report.metrics`` is the file.

    Attributes:
        interval: time between two writes while a run is under way, at most ``5m``; ``off``: only at its end.
        modules: patterns of names of modules that have series of their own; none: all.
        max_series: maximum series of a metric by module, version or account: those with the most devices. A tenth of
            it is the maximum of rollouts, and of groups of devices.
        pushgateway: where the metrics are pushed, too.
    """

    interval: str = "15s"
    modules: tuple[str, ...] = ()
    max_series: int = 1_000
    pushgateway: PushgatewaySettings | None = None

    @property
    def max_parts(self) -> int:
        """Maximum number of rollouts, and of groups, which have several series each."""
        return max(1, self.max_series // 10)
