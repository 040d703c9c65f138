"""The summary of a run: at most eight lines, the verdict first and the exit reason last, whatever the run has."""

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from auditor.cli import console
from auditor.cli.console import print_exit, print_labelled, wrap_words
from auditor.cli.render_summary import SummaryLine, summarize_audit, summarize_hooks
from auditor.errors import ExitReasonCode
from auditor.hooks.runner import HookOutcome, HookResults
from auditor.models import RunWarning
from auditor.policy.evaluate import PolicySummary
from auditor.policy.model import MaxVersions, Rule
from auditor.policy.results import RuleResult
from auditor.query.describe import describe_next_steps
from auditor.runs.manifest import (
    DeviceCounts,
    DiscoveryInfo,
    FailureInfo,
    FleetInfo,
    Manifest,
    SilentAccount,
    State,
)
from auditor.runs.selection_info import (
    AccountSelection,
    ChangesInfo,
    ExitReason,
    GapInfo,
    MismatchedAccount,
    Planned,
    Rate,
    ReleasesInfo,
    RequestCounts,
    SelectionInfo,
)

RUN = Path("audits/20261123T020000Z-nightly europe")

CALM = Manifest(
    "1",
    "nightly",
    "complete",
    "2026-11-22T02:00:00.000Z",
    (),
    FleetInfo("f.csv", 5_970, 0, ""),
    devices=DeviceCounts(ok=5_796, empty=144, not_found=30),
    requests=RequestCounts(4_525),
    rate=Rate(100.0, 50.0),
    changes=ChangesInfo("20261122T020000Z-nightly", {"downgraded": 21, "upgraded": 1_248}),
    exit_code=0,
    exit_reason=ExitReason("success", "all 5,970 devices have an answer"),
)


def ended(state: State, code: ExitReasonCode, **changes: object) -> Manifest:
    return replace(CALM, state=state, exit_reason=ExitReason(code, "because"), **changes)  # type: ignore[arg-type]


def lines(manifest: Manifest) -> dict[str, str]:
    found = list(summarize_audit(manifest, RUN, 95.0))
    assert len({line.label for line in found}) == len(found)
    return {line.label: line.text for line in found}


def test_a_good_run_is_three_lines_with_the_verdict_first() -> None:
    assert lines(CALM) == {
        "OK": "5,970 devices: 5,796 reported, 144 without modules, 30 unknown to the platform, 0 failed",
        "changes": "since 20261122T020000Z-nightly: 1,248 modules upgraded, 21 downgraded",
        "time": "1 min 35 s, queries 1 min 30 s; 4,525 requests (50/s, 50% of 100/s)",
    }


@pytest.mark.parametrize(
    ("manifest", "verdict"),
    [
        (ended("complete", "success"), "OK"),
        (ended("within_tolerance", "within_tolerance"), "OK"),
        (ended("complete", "policy_violated"), "OK"),  # the audit itself; the policy has its own line
        (ended("partial", "too_many_failed"), "PARTIAL"),
        (ended("partial", "silent_account"), "PARTIAL"),
        (ended("partial", "interrupted"), "STOPPED"),
        (ended("aborted", "refused_account"), "STOPPED"),
        (ended("partial", "success", unsampled=170, devices=DeviceCounts(ok=5_800, pending=170)), "SAMPLE"),
        (ended("partial", "too_many_failed", unsampled=170, devices=DeviceCounts(5_700, 0, 0, 100, 170)), "PARTIAL"),
    ],
)
def test_the_verdict_is_the_first_word(manifest: Manifest, verdict: str) -> None:
    assert next(summarize_audit(manifest, RUN, 1.0)).label == verdict


def test_failed_devices_are_named_by_code_with_the_command_that_retries_them() -> None:
    failures = (FailureInfo("auditor.Timeout", 20, "dev-7"), *(FailureInfo(f"c{at}", 1, "d") for at in range(3)))
    counts = DeviceCounts(ok=5_947, failed=23)
    found = lines(ended("partial", "too_many_failed", failures=failures, devices=counts))
    assert found["PARTIAL"] == "5,970 devices: 5,947 reported, 23 failed"
    resume = f"resume with: auditor resume '{RUN}'"
    assert (
        found["failed"]
        == f"20 with auditor.Timeout, such as dev-7; 1 with c0, such as d; 2 more codes; 23 devices remain; {resume}"
    )
    interrupted = lines(ended("partial", "interrupted", devices=DeviceCounts(ok=5_969, pending=1)))
    assert interrupted["to do"] == f"1 device remains; {resume}"
    assert "failed" not in interrupted


def test_a_product_that_does_not_exist_is_to_be_corrected() -> None:
    gap = GapInfo("nosuch", 0, None, None, "iot.prod.NotExistedProduct: The specified product does not exist.")
    discovery = (DiscoveryInfo("eu", "partial", 1, gap_count=1, gaps_of_unknown_size=1, gaps=(gap,)),)
    found = lines(ended("partial", "unlisted_product", discovery=discovery))
    advice = "correct the products in the settings: the platform has no product nosuch"
    assert found["to do"] == f"fleets are not completely listed; {advice}"
    manifest = ended("partial", "unlisted_product", discovery=discovery, settings_file="/etc/n.toml")
    assert describe_next_steps(manifest, "unlisted_product", RUN) == (
        advice,
        ("auditor check /etc/n.toml", "auditor run /etc/n.toml"),
    )
    other = replace(gap, reason="auditor.Timeout: no answer")
    discovery = (replace(discovery[0], gaps=(other,)),)
    assert "resume with: " in lines(ended("partial", "unlisted_product", discovery=discovery))["to do"]


def test_a_run_without_answers_has_no_changes_and_few_requests_no_rate() -> None:
    silent = replace(CALM, devices=DeviceCounts(pending=5_970), state="aborted")
    assert "changes" not in lines(silent)
    few = replace(CALM, requests=RequestCounts(9, 2, 1))
    assert lines(few)["time"].endswith("; 9 requests, 2 of them retries, 1 of them throttled")


def test_what_was_selected_is_beside_the_devices() -> None:
    accounts = (
        AccountSelection("eu", {"connected": 2_000, "recheck": 10}),
        AccountSelection("us", {"connected": 238, "new": 0}),
    )
    found = lines(replace(CALM, carried=3_722, selection=SelectionInfo("incremental", accounts=accounts)))
    assert found["OK"].startswith("5,970 devices (2,248 to query: 2,238 connected, 10 recheck; 3,722 carried): 5,796 ")
    every = SelectionInfo("rolling", accounts=(AccountSelection("eu", {"oldest": 5_000, "violating": 970}),))
    assert lines(replace(CALM, selection=every))["OK"].startswith("5,970 devices: 5,796 ")


def test_warnings_are_one_line_without_what_the_reason_says() -> None:
    silent = SilentAccount("us", "not_found", 9)
    manifest = replace(
        CALM,
        silent=(silent,),
        mismatched=(MismatchedAccount("eu", 3),),
        fleet=FleetInfo("f.csv", 5_970, 4, "", aliases=2),
        releases=(ReleasesInfo("eu", problems=("ListOTAFirmware is not permitted",)),),
    )
    assert lines(manifest)["warning"].startswith(f'{silent}; account "eu": ')
    assert lines(manifest)["warning"].endswith("; 3 more in run.json")
    reason = ExitReason("silent_account", str(silent))
    assert str(silent) not in lines(replace(manifest, exit_reason=reason))["warning"]


def result(name: str, verdict: str, severity: str = "error") -> RuleResult:
    rule = Rule(name, severity, MaxVersions(1))  # type: ignore[arg-type]
    return RuleResult(rule, verdict, 1, 1, 0, 0, 0, "devices", f"found {name}")  # type: ignore[arg-type]


def test_hooks_are_a_line_about_the_policy_and_one_about_files_and_failures() -> None:
    policy = PolicySummary(
        (result("a", "violated", "warning"), result("b", "violated"), result("c", "not_seen")), failed=True
    )
    outcomes = (HookOutcome("metrics", Path("auditor.prom")), HookOutcome("report", Path("fleet.html")))
    found = list(summarize_hooks(HookResults(4, outcomes, policy)))
    assert [(line.label, line.text) for line in found] == [
        ("policy", "3 rules, 2 violated, 1 undecided: b (error): found b; a (warning): found a; 1 more"),
        ("wrote", "auditor.prom; fleet.html"),
    ]
    failed = HookOutcome("notify", error="ops: answered 401")
    (line,) = summarize_hooks(HookResults(0, (*outcomes, failed)))
    assert (line.label, line.text) == (
        "hooks",
        "wrote auditor.prom; fleet.html; a message was not delivered: ops: answered 401; the run itself is fine",
    )
    assert list(summarize_hooks(HookResults(0))) == []
    (line,) = summarize_hooks(HookResults(0, (), PolicySummary((result("a", "compliant"),))))
    assert line.text == "1 rule, all compliant"


def worst() -> tuple[Manifest, HookResults]:
    """Return a run with everything that a summary has, in long and hostile texts."""
    long = "\x1b[31m" + "x" * 20_000
    manifest = ended(
        "partial",
        "too_many_failed",
        devices=DeviceCounts(1, 1, 1, 5_000, 967),
        failures=tuple(FailureInfo(long, 3, long) for _ in range(100)),
        mismatched=tuple(MismatchedAccount(long, 3) for _ in range(50)),
        discovery=tuple(DiscoveryInfo(long) for _ in range(50)),
        changes=ChangesInfo(long, dict.fromkeys(("upgraded", "vanished", "new kind"), 3)),
        selection=SelectionInfo("rolling", max_calls=9, budget_exhausted=True, not_reached=9),
        rate=Rate(1e308, 1e-320),
        requests=RequestCounts(2**62, 2**62, 2**62),
        planned=Planned(9, 1e308, None),
    )
    rules = tuple(result(long, "violated") for _ in range(50))
    policy = PolicySummary(
        rules, failed=True, warnings=tuple(RunWarning("unmatched_rule", "", long) for _ in range(99))
    )
    outcomes = [HookOutcome("report", Path(long)) for _ in range(9)]
    return manifest, HookResults(1, (*outcomes, HookOutcome("notify", error=long)), policy)


def test_no_run_has_more_than_eight_lines_and_no_text_acts_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    manifest, results = worst()
    found = [*summarize_audit(manifest, RUN, 1e308), *summarize_hooks(results)]
    assert len(found) == 7  # the exit reason is the eighth
    for line in found:
        print_labelled(line.label, line.text, style=line.style, styles=line.styles)
    print_exit("exit 1 (too_many_failed): because", 1)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 8
    assert printed[-1] == "exit 1 (too_many_failed): because"
    assert sum(map(len, printed)) < 8_000
    assert all(line.isprintable() for line in printed)


@pytest.mark.parametrize("rate", [Rate(0.0, 1.0), Rate(1e-320, 1e308), Rate(None, 1e-320), Rate(-1.0, -1e-320)])
def test_implausible_rates_are_written(rate: Rate) -> None:
    requests, planned = RequestCounts(sent=2**62), Planned(9, 1e308, None)
    found = lines(replace(CALM, rate=rate, requests=requests, planned=planned))
    assert f"; {2**62:,} requests (" in found["time"]


class Terminal(io.StringIO):
    """Standard error of a terminal."""

    def isatty(self) -> bool:
        return True


def terminal_lines(monkeypatch: pytest.MonkeyPatch, *shown: SummaryLine, columns: int = 80, **environment: str) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": str(columns), "TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for line in shown:
        print_labelled(line.label, line.text, style=line.style, styles=line.styles)
    print_exit("exit 0 (success): all 5,970 devices have an answer", 0)
    return stream.getvalue()


def test_a_terminal_has_colours_unless_its_user_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = list(summarize_audit(CALM, RUN, 95.0))
    coloured = terminal_lines(monkeypatch, *shown)
    assert coloured.startswith("\x1b[1;32mOK\x1b[0m       5,970 devices")
    assert "\x1b[31m21 downgraded\x1b[0m" in coloured
    assert "\x1b[1;32mexit 0\x1b[0m (success)" in coloured
    assert "\x1b[32m" not in terminal_lines(monkeypatch, *shown, NO_COLOR="1")
    assert "\x1b" not in terminal_lines(monkeypatch, *shown, TERM="dumb")


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_lines_of_a_terminal_end_between_words_and_commands_are_whole(
    monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    counts = DeviceCounts(ok=5_947, failed=23)
    manifest = ended(
        "partial", "too_many_failed", devices=counts, failures=(FailureInfo("auditor.Timeout", 23, "dev-7"),)
    )
    shown = list(summarize_audit(manifest, RUN, 95.0))
    text = terminal_lines(monkeypatch, *shown, columns=columns, TERM="dumb")
    command = f"auditor resume '{RUN}'"
    assert sum(command in line for line in text.splitlines()) == 1
    for line in text.splitlines():
        assert cell_len(line) <= columns or line.strip().endswith(command)
    words = " ".join(f"{line.label} {line.text}" for line in shown).split()
    assert text.split()[: len(words)] == words
    if columns == 80:
        assert len(text.splitlines()) <= 8


def test_wrapped_lines_have_the_words_of_the_line() -> None:
    assert wrap_words("a bb ccc", 4) == "a bb\n  ccc"
    assert wrap_words("  a bb 灯灯灯", 6) == "  a bb\n  灯灯灯"
    assert wrap_words("a" * 9, 4) == "a" * 9
    assert wrap_words("x" * 90, None) == "x" * 90
    assert wrap_words("try: auditor run a b; or not", 12) == "try:\n  auditor run a b;\n  or not"


def test_a_log_in_json_has_a_line_for_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console.LOG_STYLE, "format", "json")
    print_labelled("OK", "5 devices", style="green")
    print_exit("exit 0 (success): all", 0)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [(each["event"], each.get("label"), each["message"]) for each in lines] == [
        ("summary", "OK", "5 devices"),
        ("exit", None, "exit 0 (success): all"),
    ]
