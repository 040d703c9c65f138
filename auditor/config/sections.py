"""What tables of the settings consist of."""

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
