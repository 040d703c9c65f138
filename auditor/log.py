"""The program's log, by structlog, which is imported when the first message is written.

That import takes a fifth of the time of a short command, and most commands write no message.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class Log:
    """Writes messages as structlog is configured; to standard error if it is not, since standard output is for data."""

    def info(self, event: str, **values: object) -> None:
        """Write what happens as expected."""
        _logger().info(event, **values)

    def warning(self, event: str, **values: object) -> None:
        """Write what an operator should know, though the work continues."""
        _logger().warning(event, **values)

    def error(self, event: str, **values: object) -> None:
        """Write what ended a part of the work."""
        _logger().error(event, **values)


log = Log()


def _logger() -> "FilteringBoundLogger":
    import structlog

    if structlog.is_configured():
        configured: FilteringBoundLogger = structlog.get_logger()
        return configured
    default: FilteringBoundLogger = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
    return default
