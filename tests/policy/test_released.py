"""Rules about released versions, compared with the truth of simulated nights."""

from collections import Counter
from datetime import timedelta
from fractions import Fraction
from pathlib import Path

import pytest

from auditor.errors import SettingsError
from auditor.policy.evaluate import evaluate_policy
from auditor.policy.loader import parse_policy
from auditor.policy.model import Policy, Released
from tests.analysis.simulated_nights import (
    BEGIN,
    DEVICES_EACH,
    KINDS,
    KNOWN,
    NEW,
    NIGHTS,
    OLD,
    PRODUCTS,
    Fleet,
    started,
    write_night,
)

ORDER = (OLD, NEW, "3.0-beta1")


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fleet, dict[int, Path]]:
    fleet, directory = Fleet(5), tmp_path_factory.mktemp("nights")
    return fleet, {night: write_night(directory, fleet, night) for night in (0, 4, 5, 8, 9, 12, 16, 20, NIGHTS - 1)}


def policy(**keys: str) -> Policy:
    return Policy(parse_policy({"rule": [{"name": "r", **keys}]}, "rules.toml"), "rules.toml")


def bar(product: str, night: int, days: int) -> str:
    """The version that was released last, so many days before a night."""
    day = 6 if product == "offered" else 3
    return NEW if product != "beta" and night >= 1 and BEGIN + timedelta(days=day + days) <= started(night) else OLD


def expected(fleet: Fleet, night: int, days: int) -> Counter[str]:
    """Verdicts on the modules of the account whose releases were read."""
    found: Counter[str] = Counter()
    for product in PRODUCTS:
        versions, answered = fleet.versions[night, KNOWN, product], fleet.answered[night, KNOWN, product]
        required = ORDER.index(bar(product, night, days))
        on = sum(ORDER.index(version) >= required for version, ok in zip(versions, answered, strict=True) if ok)
        if Fraction(on, sum(answered)) < Fraction(95, 100):
            found["violated"] += 1
        else:
            found["compliant" if Fraction(on, DEVICES_EACH) >= Fraction(95, 100) else "not_seen"] += 1
    return found


@pytest.mark.parametrize("days", [0, 5])
@pytest.mark.slow
def test_modules_comply_as_the_truth_says(nights: tuple[Fleet, dict[int, Path]], days: int) -> None:
    fleet, folders = nights
    rules = policy(released="95%", account=KNOWN, **({"released_within": f"{days}d"} if days else {}))
    seen: Counter[str] = Counter()
    for night, folder in folders.items():
        with evaluate_policy(folder, rules, now=started(night)) as report:
            (result,) = report.results
            rows = report.violations.to_dicts()
        counts = {name: getattr(result, name) for name in ("compliant", "violated", "not_seen")}
        if night == 0:  # it read no releases
            assert (result.verdict, counts["not_seen"]) == ("not_seen", len(PRODUCTS))
            continue
        assert (result.unparseable, result.exempt) == (0, 0)
        if KINDS.get(night) != "sample":
            assert Counter(counts) == Counter(dict.fromkeys(counts, 0)) + expected(fleet, night, days), night
            behind = Counter(str(row["product_key"]) for row in rows)
            for product, number in behind.items():
                versions, answered = fleet.versions[night, KNOWN, product], fleet.answered[night, KNOWN, product]
                required = ORDER.index(bar(product, night, days))
                assert number == sum(ok and ORDER.index(v) < required for v, ok in zip(versions, answered, strict=True))
        seen.update(counts)
    assert min(seen.values()) > 0


@pytest.mark.slow
def test_a_sample_decides_by_the_interval(nights: tuple[Fleet, dict[int, Path]]) -> None:
    with evaluate_policy(
        nights[1][9], policy(released="95%", account=KNOWN, product="staged"), now=started(9)
    ) as report:
        (result,) = report.results
    assert result.verdict == "violated"
    assert result.low is not None
    assert result.high is not None
    assert result.low < 0.42 < result.high < 0.95
    assert "run the released version by the sample" in result.message


@pytest.mark.slow
def test_without_releases_nothing_complies(nights: tuple[Fleet, dict[int, Path]]) -> None:
    with evaluate_policy(nights[1][8], policy(released="50%", account="unknown"), now=started(8)) as report:
        (result,) = report.results
        assert (result.verdict, result.compliant, result.not_seen) == ("not_seen", 0, len(PRODUCTS))
        assert any("released = true" in str(warning.detail) for warning in report.warnings)


def test_the_age_of_a_release_needs_the_share() -> None:
    assert policy(released=">= 95%", released_within="14d").rules[0].condition == Released(
        Fraction(95, 100), "95%", 14 * 86_400.0, "14d"
    )
    assert policy(released="95%", released_within="14d").rules[0].description == (
        "every module runs its released version on 95% of a product's devices or more, 14d after its release"
    )
    for keys, words in (
        ({"newest": "95%", "released_within": "14d"}, "released_within: is for rules with released"),
        ({"released_within": "14d"}, "has no condition"),
        ({"released": "95"}, "released: '95' is not a share"),
        ({"released": "95%", "released_within": "soon"}, "released_within: 'soon' is not a duration"),
        ({"released": "95%", "newest": "95%"}, "has newest and released"),
    ):
        with pytest.raises(SettingsError, match=words):
            policy(**keys)
