"""Formats of metrics, as the reference parsers and promtool read them."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_prometheus

from auditor.hooks.metric_samples import SampleCollector, render_samples
from auditor.hooks.prometheus import render_metrics
from auditor.policy.evaluate import summarize_policy
from auditor.policy.loader import load_policy
from auditor.text.formats import MetricsFormat
from auditor.text.formatting import safe
from tests.hooks.test_prometheus import POLICY
from tests.runs.run_folders import HOSTILE, build, every_status, named, ok

Parser = Callable[[str], Iterable[Metric]]

PARSERS: list[tuple[MetricsFormat, Parser]] = [("prometheus", parse_prometheus), ("openmetrics", parse_openmetrics)]


def read(parse: Parser, text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def text_of(tmp_path: Path) -> Callable[[MetricsFormat], bytes]:
    folder = every_status(tmp_path / "run").folder
    rules = tmp_path / "rules.toml"
    rules.write_text(POLICY)
    policy = summarize_policy(folder, load_policy(rules))
    return lambda format_: render_metrics(folder, policy, ("site",), format_=format_)


def test_openmetrics_is_valid_and_has_the_same_samples(text_of: Callable[[MetricsFormat], bytes]) -> None:
    text = text_of("openmetrics")
    found = read(parse_openmetrics, text)
    assert found == read(parse_prometheus, text_of("prometheus"))
    assert len(found) > 100
    families: Iterable[Metric] = parse_openmetrics(text.decode())  # type: ignore[no-untyped-call]
    units = {family.name: family.unit for family in families if family.unit}
    assert units["auditor_last_run_timestamp_seconds"] == "seconds"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="NOT TESTED: promtool is missing (Debian: prometheus)")
def test_promtool_finds_no_fault_in_the_text(text_of: Callable[[MetricsFormat], bytes]) -> None:
    for text, faults in ((text_of("prometheus"), False), (b"auditor_devices 1\n", True)):
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        assert (checked.returncode != 0, bool(checked.stderr)) == (faults, faults), checked.stderr.decode()


@pytest.mark.parametrize(("format_", "parse"), PARSERS)
@given(st.dictionaries(st.text(max_size=12), st.integers(1, 1_000_000), max_size=6), st.text(max_size=12))
def test_any_text_is_a_label_that_a_parser_reads_back(
    format_: MetricsFormat, parse: Parser, values: dict[str, int], run: str
) -> None:
    gathered = SampleCollector(run)
    for text, value in values.items():
        gathered.add("auditor_failed_devices", value, code=text)
    found = read(parse, render_samples(gathered, format_))
    expected: Counter[str] = Counter()
    for text, value in values.items():
        expected[safe(text)] += value
    assert {dict(labels)["code"]: value for (_, labels), value in found.items()} == expected
    assert {dict(labels)["run"] for _, labels in found} <= {safe(run)}


def test_texts_of_devices_are_valid_openmetrics(tmp_path: Path) -> None:
    fleet = [named(number) for number in range(len(HOSTILE))]
    folder = build(
        tmp_path / "run", fleet, [ok(d, ("ble", text)) for d, text in zip(fleet, HOSTILE, strict=True)]
    ).folder
    found = read(parse_openmetrics, render_metrics(folder, format_="openmetrics"))
    assert len([name for name, _ in found if name == "auditor_module_version_devices"]) > 5
