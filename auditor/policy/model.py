"""Rules of a policy as values. Patterns are those of ``auditor.text.globs``; on modules they ignore case."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from datetime import date as Date  # noqa: N812  `date` alone is the name of a parameter
from fractions import Fraction
from typing import Literal

import msgspec

from auditor.errors import UsageError
from auditor.text.globs import MATCH_ALL

Severity = Literal["error", "warning", "note"]

_MAX_LISTED = 5
"""Patterns or versions that a sentence lists."""


@dataclass(frozen=True, slots=True)
class Minimum:
    """No version older than this one."""

    version: str


@dataclass(frozen=True, slots=True)
class Exact:
    """Only versions whose text is one of these."""

    versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Deny:
    """No version that one of these patterns matches, or that is the same as one of them."""

    patterns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Required:
    """The device reports a module that the rule's patterns match."""


@dataclass(frozen=True, slots=True)
class MaxVersions:
    """At most this number of versions of a module in a product; versions that are the same count once."""

    versions: int


@dataclass(frozen=True, slots=True)
class Newest:
    """At least this share of a product's devices with the module runs the newest version; ``text`` as in ``95%``."""

    share: Fraction
    text: str


@dataclass(frozen=True, slots=True)
class Released:
    """At least this share of a product's devices with the module runs the released version, or a newer one.

    Attributes:
        share, text: as in ``Newest``.
        seconds, within: age of a release until which it is not required, as in ``14d``; None: it always is.
    """

    share: Fraction
    text: str
    seconds: float | None = None
    within: str | None = None


@dataclass(frozen=True, slots=True)
class MaxAge:
    """No answer older than this; ``text`` as in the rules file, such as ``36h``."""

    seconds: float
    text: str


Condition = Minimum | Exact | Deny | Required | MaxVersions | Newest | Released | MaxAge


class RuleException(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An exception from a rule. What all its patterns match is exempt.

    Attributes:
        until: last day of the exception, in UTC.
        reason: why it exists.
        device: pattern on device_name or iot_id; default: everything.
        product, module, version: patterns on product_key, module names and versions; default: everything.
    """

    until: Date
    reason: str
    device: str | None = None
    product: str | None = None
    module: str | None = None
    version: str | None = None

    def expired(self, now: datetime) -> bool:
        """Return whether its last day is over."""
        return now.astimezone(UTC).date() > self.until

    @property
    def whole_devices(self) -> bool:
        """Whether it matches devices as a whole, whatever they report."""
        return self.module is None and self.version is None

    @property
    def description(self) -> str:
        """Its patterns in words."""
        given = (("device", self.device), ("product", self.product), ("module", self.module), ("version", self.version))
        return ", ".join(f"{name} {pattern}" for name, pattern in given if pattern is not None)


@dataclass(frozen=True, slots=True)
class Rule:
    """A requirement on devices, or on the modules of products.

    Attributes:
        name: unique in its file.
        severity: of a violation; only an ``error`` fails.
        accounts, products, modules: patterns; the rule's scope is what one of each matches.
        exceptions: what is exempt.
        where: patterns on attributes by name; a device must match one pattern of each attribute.
    """

    name: str
    severity: Severity
    condition: Condition
    accounts: tuple[str, ...] = (MATCH_ALL,)
    products: tuple[str, ...] = (MATCH_ALL,)
    modules: tuple[str, ...] = (MATCH_ALL,)
    exceptions: tuple[RuleException, ...] = ()
    where: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def unit(self) -> Literal["devices", "modules"]:
        """What has a verdict: devices, or the modules of products."""
        return "modules" if isinstance(self.condition, MaxVersions | Newest | Released) else "devices"

    @property
    def description(self) -> str:  # noqa: PLR0911  one for each
        """The requirement in one sentence."""
        place = "".join(
            f" {word} {join_texts(patterns)}"
            for word, patterns in (("of product", self.products), ("in account", self.accounts))
            if patterns != (MATCH_ALL,)
        )
        place += "".join(f" with {name} {join_texts(patterns)}" for name, patterns in self.where)
        module = "every module" if self.modules == (MATCH_ALL,) else f"module {join_texts(self.modules)}"
        match self.condition:
            case Minimum(version):
                return f"{module}{place} runs {version} or newer"
            case Exact(versions):
                return f"{module}{place} runs exactly {join_texts(versions)}"
            case Deny(patterns):
                return f"{module}{place} runs nothing like {join_texts(patterns)}"
            case Required():
                any_module = "a module" if self.modules == (MATCH_ALL,) else module
                return f"every device{place} reports {any_module}"
            case MaxVersions(versions):
                return f"{module}{place} has at most {versions:,} versions in use in a product"
            case Newest(_, share):
                return f"{module}{place} runs its newest version on {share} of a product's devices or more"
            case Released(_, share, _, within):
                age = "" if within is None else f", {within} after its release"
                return f"{module}{place} runs its released version on {share} of a product's devices or more{age}"
            case MaxAge(_, age):
                return f"every device{place} was answered within {age}"


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules in the order of their file, and the file."""

    rules: tuple[Rule, ...]
    source: str

    def restricted(self, name: str) -> "Policy":
        """Return the policy with only the rule of this name; raise UsageError if there is none."""
        rules = tuple(rule for rule in self.rules if rule.name == name)
        if not rules:
            names = ", ".join(rule.name for rule in self.rules)
            raise UsageError(f"--rule {name}: {self.source} has no such rule; its rules are {names}")
        return replace(self, rules=rules)


def join_texts(texts: tuple[str, ...]) -> str:
    """Join the first texts, and add how many more there are."""
    more = len(texts) - _MAX_LISTED
    return " or ".join([*texts[:_MAX_LISTED], *([f"{more:,} more"] if more > 0 else [])])
