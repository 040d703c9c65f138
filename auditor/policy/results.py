"""The result of each rule of a policy: its verdict, its counts, and a sentence."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from auditor.models import RunWarning
from auditor.policy.model import MaxAge, Released, Rule
from auditor.policy.sampled import SampleResult, read_sample_result
from auditor.policy.scope import COMPLIANT, EXEMPT, NOT_SEEN, SEEN, UNPARSEABLE, UNSAMPLED, VIOLATED
from auditor.storage.database import Database

Verdict = Literal["compliant", "violated", "unparseable", "not_seen"]

_WORST: tuple[Verdict, ...] = ("violated", "unparseable", "not_seen")

_COUNTED = {"compliant": COMPLIANT, "violated": VIOLATED, "unparseable": UNPARSEABLE, "not_seen": NOT_SEEN}
_COUNTED |= {"exempt": EXEMPT, "unsampled": UNSAMPLED}


@dataclass(frozen=True, slots=True)
class RuleResult:
    """The result of a rule.

    Attributes:
        verdict: the worst verdict on a device or module.
        compliant, violated, unparseable, not_seen, exempt: numbers of devices, or of modules of products.
        unit: what they count.
        message: the findings in one sentence.
        unsampled: unsampled devices, or products without a sampled device; the other counts do not contain them.
        share, low, high: of a sample, the share of the devices in scope that violate the rule, with its 95% confidence
            interval; of ``newest`` and ``released``, the share with that version in the product's module that decides.
            None: no device in scope is unsampled, or the share is unknown.
    """

    rule: Rule
    verdict: Verdict
    compliant: int
    violated: int
    unparseable: int
    not_seen: int
    exempt: int
    unit: Literal["devices", "modules"]
    message: str
    unsampled: int = 0
    share: float | None = None
    low: float | None = None
    high: float | None = None


def collect_results(
    database: Database, rules: tuple[Rule, ...], *, sampled: bool
) -> tuple[tuple[RuleResult, ...], tuple[RunWarning, ...]]:
    """Return the result of each rule, and a warning for each rule that matches nothing in the run."""
    query = "SELECT rule, rank, sum(number)::BIGINT FROM verdict_counts GROUP BY rule, rank"
    numbers = {(at, rank): number for at, rank, number in database.execute(query).fetchall()}
    results, unmatched = [], []
    for at, rule in enumerate(rules):
        counts = {name: numbers.get((at, rank), 0) for name, rank in _COUNTED.items()}
        sample = read_sample_result(database, at, rule) if sampled else None
        message = _message(rule, counts, sample)
        interval = None if sample is None else sample.interval
        limits = {} if interval is None else {name: getattr(interval, name) for name in ("share", "low", "high")}
        verdict = _verdict(rule, counts, sample)
        results.append(RuleResult(rule, verdict, **counts, unit=rule.unit, message=message, **limits))
        unanswered = counts["not_seen"] + counts["unsampled"]
        if sum(counts.values()) == unanswered and (numbers.get((at, SEEN), 0) or not unanswered):
            where = "of the devices that answered" if unanswered else "in this run"
            detail = f'rule "{rule.name}" matches nothing {where}: check its patterns'
            if isinstance(rule.condition, Released):
                detail += ", and whether the settings have released = true"
            if unanswered:
                detail += "; or query the devices without an answer"
            unmatched.append(RunWarning("unmatched_rule", "", detail))
    return tuple(results), tuple(unmatched)


def _verdict(rule: Rule, counts: Mapping[str, int], sample: SampleResult | None) -> Verdict:
    if not sum(counts.values()):  # a rule that matches nothing does not comply
        return "not_seen"
    # An unsampled device may violate a rule about devices. The verdicts on modules of products consider that already.
    may_violate = sample is not None and (rule.unit == "devices" or counts["unsampled"])
    considered = dict(counts) | ({"not_seen": 1} if may_violate else {})
    return next((verdict for verdict in _WORST if considered[verdict]), "compliant")


def _message(rule: Rule, counts: Mapping[str, int], sample: SampleResult | None) -> str:
    by_device = rule.unit == "devices"
    noun = "devices" if by_device else "product modules"
    evaluated = counts["compliant"] + counts["violated"] + counts["unparseable"]
    text = None if sample is None else sample.text
    if text is not None and by_device:
        parts = [text]
    elif counts["violated"]:
        parts = [f"{counts['violated']:,} of {evaluated:,} {noun} violate it"]
    elif evaluated:
        parts = [f"{counts['compliant']:,} of {evaluated:,} {noun} comply"]
    else:
        parts = [f"no {noun} to evaluate"]
    if counts["unparseable"]:
        verb = "has" if counts["unparseable"] == 1 else "have"
        why = "an answer of unknown time" if isinstance(rule.condition, MaxAge) else "versions that cannot be compared"
        parts.append(f"{counts['unparseable']:,} {verb} {why}")
    if counts["not_seen"]:
        unsampled = " or are not sampled" if sample is not None else ""
        undecided = "have no answer" if by_device else f"undecided: devices have no answer{unsampled}"
        if isinstance(rule.condition, Released):
            undecided += ", or the released firmware was not read"
        parts.append(f"{counts['not_seen']:,} {undecided}")
    if counts["unsampled"]:
        parts.append(f"{counts['unsampled']:,} {'are' if by_device else 'products are'} not sampled")
    if counts["exempt"]:
        parts.append(f"{counts['exempt']:,} exempt")
    if text is not None and not by_device:
        parts.append(text)
    return ", ".join(parts)
