"""A rule of a policy, as values. Reading them from TOML is ``rules``'s, judging a run by them ``policy``'s.

Patterns are those of ``auditor.inventory.patterns``; those on modules are read regardless of case.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from datetime import date as Date  # noqa: N812  `date` alone is the name of a parameter
from fractions import Fraction
from typing import Literal

from auditor.text.globs import EVERYTHING

Severity = Literal["error", "warning", "note"]


_NAMED = 5
"""Patterns or versions that a sentence lists."""


@dataclass(frozen=True, slots=True)
class Minimum:
    """No version older than this one."""

    version: str


@dataclass(frozen=True, slots=True)
class Exact:
    """No version that is not spelled as one of these is."""

    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deny:
    """No version that one of these patterns matches, or that is the same as one of them."""

    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Required:
    """A module that the rule's patterns match is reported."""


@dataclass(frozen=True, slots=True)
class MaxVersions:
    """At most so many versions of a module in a product; those that are the same are one."""

    versions: int


@dataclass(frozen=True, slots=True)
class Newest:
    """At least this part of a product's devices with the module runs the newest version; ``text`` as in ``95%``."""

    share: Fraction
    text: str


@dataclass(frozen=True, slots=True)
class MaxAge:
    """No answer older than so many seconds; ``text`` as it was written, such as ``36h``."""

    seconds: float
    text: str


Condition = Minimum | Exact | Deny | Required | MaxVersions | Newest | MaxAge


@dataclass(frozen=True, slots=True)
class RuleException:
    """What a rule does not apply to, until the end of a day (UTC). Patterns that are None match everything.

    Attributes:
        until: the last day.
        reason: why.
        device: a pattern on device_name or iot_id.
        product: a pattern on product_key.
        module: a pattern on module names.
        version: a pattern on versions.
    """

    until: Date
    reason: str
    device: str | None = None
    product: str | None = None
    module: str | None = None
    version: str | None = None

    def expired(self, now: datetime) -> bool:
        """Whether its last day is over."""
        return now.astimezone(UTC).date() > self.until

    @property
    def whole_devices(self) -> bool:
        """Whether devices are meant as a whole, whatever they report."""
        return self.module is None and self.version is None

    @property
    def text(self) -> str:
        """What it is for, in words."""
        given = (("device", self.device), ("product", self.product), ("module", self.module), ("version", self.version))
        return ", ".join(f"{name} {pattern}" for name, pattern in given if pattern is not None)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is asked of devices, or of products' modules.

    Attributes:
        name: unique in its file.
        severity: what a violation means: an ``error`` fails.
        condition: what is asked.
        accounts, products, modules: patterns; what one of each matches is judged.
        exceptions: what is not.
    """

    name: str
    severity: Severity
    condition: Condition
    accounts: tuple[str, ...] = (EVERYTHING,)
    products: tuple[str, ...] = (EVERYTHING,)
    modules: tuple[str, ...] = (EVERYTHING,)
    exceptions: tuple[RuleException, ...] = ()

    @property
    def unit(self) -> Literal["devices", "modules"]:
        """What is judged: devices, or the modules of products."""
        return "modules" if isinstance(self.condition, MaxVersions | Newest) else "devices"

    @property
    def text(self) -> str:  # noqa: PLR0911  one for each
        """One sentence that says what is asked."""
        place = "".join(
            f" {word} {listed(patterns)}"
            for word, patterns in (("of product", self.products), ("in account", self.accounts))
            if patterns != (EVERYTHING,)
        )
        module = "every module" if self.modules == (EVERYTHING,) else f"module {listed(self.modules)}"
        match self.condition:
            case Minimum(version):
                return f"{module}{place} runs {version} or newer"
            case Exact(versions):
                return f"{module}{place} runs {listed(versions)}, spelled so"
            case Deny(patterns):
                return f"{module}{place} runs nothing like {listed(patterns)}"
            case Required():
                any_module = "a module" if self.modules == (EVERYTHING,) else module
                return f"every device{place} reports {any_module}"
            case MaxVersions(versions):
                return f"{module}{place} has at most {versions:,} versions alive in a product"
            case Newest(_, share):
                return f"{module}{place} runs its newest version on {share} of a product's devices or more"
            case MaxAge(_, age):
                return f"every device{place} was answered within {age}"


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy: its rules in the order of the file, and the file."""

    rules: tuple[Rule, ...]
    source: str


def listed(texts: tuple[str, ...]) -> str:
    """A few texts, and how many more there are."""
    more = len(texts) - _NAMED
    return " or ".join([*texts[:_NAMED], *([f"{more:,} more"] if more > 0 else [])])
