"""Command-line interface: commands, their options, and what they print."""

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; see ``auditor.cli.app.main``."""
    from auditor.cli import app

    return app.main(arguments)
