"""How a verified run ends: its state, its exit code, and the reason."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest

from auditor.audit.finalize import conclude
from auditor.errors import (
    AccountStoppedError,
    AuditInterruptedError,
    AuditorError,
    ExitReasonCode,
    FleetError,
    PolicyError,
    RunFolderError,
    RunNotWritableError,
)
from auditor.runs.manifest import (
    AccountInfo,
    DeviceCounts,
    DiscoveryInfo,
    FailureInfo,
    FleetInfo,
    Manifest,
    SilentAccount,
)
from auditor.runs.selection_info import ExitReason, GapInfo, SelectionInfo

WHOLE = Manifest(
    auditor_version="1",
    name="nightly",
    state="partial",
    started_at="2026-11-22T02:00:00.000Z",
    accounts=(AccountInfo("eu", "https://example.com/", "tuya", 10),),
    fleet=FleetInfo("fleet.csv", 1_000, 0, ""),
    devices=DeviceCounts(ok=1_000),
    max_failed="0.5%",
)
GAP = GapInfo("p1", 990, 1_000, 1_000)
LISTED = DiscoveryInfo("eu", "partial", 1, 1_000, missing=5, gap_count=1, gaps=(GAP,))


def counted(failed: int = 0, pending: int = 0, **changes: Any) -> Manifest:
    devices = DeviceCounts(ok=1_000 - failed - pending, failed=failed, pending=pending)
    return replace(WHOLE, devices=devices, **changes)


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (WHOLE, ("complete", 0, "success", "all 1,000 devices have an answer")),
        (counted(5), ("within_tolerance", 0, "within_tolerance", "5 of 1,000 devices failed (0.5%, limit 0.5%)")),
        (counted(1), ("within_tolerance", 0, "within_tolerance", "1 of 1,000 devices failed (0.1%, limit 0.5%)")),
        (
            counted(3, 1, max_failed=4),
            ("within_tolerance", 0, "within_tolerance", "3 of 1,000 devices failed and 1 is pending (0.4%, limit 4)"),
        ),
        (
            counted(discovery=(LISTED,)),
            ("within_tolerance", 0, "within_tolerance", "5 of 1,005 devices were not listed (0.498%, limit 0.5%)"),
        ),
        (
            counted(6, failures=(FailureInfo("auditor.Timeout", 6, "p1/d1"),)),
            (
                "partial", 1, "too_many_failed",
                "6 of 1,000 devices failed (0.6%, limit 0.5%), most of them with auditor.Timeout",
            ),
        ),
        (
            counted(1, fleet=replace(WHOLE.fleet, shared_identities=4)),
            (
                "within_tolerance", 0, "within_tolerance",
                "1 of 1,000 devices failed and 4 are named like another in the answers (0.5%, limit 0.5%)",
            ),
        ),
        (
            counted(fleet=replace(WHOLE.fleet, shared_identities=6)),
            (
                "partial", 1, "shared_identity",
                "6 of 1,000 devices are named like another in the answers (0.6%, limit 0.5%)",
            ),
        ),
        (
            counted(1, 400),
            (
                "partial", 1, "too_many_pending",
                "1 of 1,000 devices failed and 400 are pending (40.1%, limit 0.5%): the deadline was reached",
            ),
        ),
        (
            counted(1, max_failed=0, discovery=(LISTED,)),
            (
                "partial", 1, "unlisted_product",
                "1 of 1,005 devices failed and 5 were not listed (0.597%, limit 0): the deadline was reached",
            ),
        ),
        (
            counted(discovery=(DiscoveryInfo("eu"),)),
            ("partial", 1, "unlisted_product", 'account "eu": its device list is incomplete: the deadline was reached'),
        ),
        (
            counted(discovery=(replace(LISTED, missing=0, gaps_of_unknown_size=1),), max_failed="100%"),
            ("partial", 1, "unlisted_product", 'account "eu": a gap: product p1: 990 of 1,000 devices listed'),
        ),
        (
            counted(silent=(SilentAccount("eu", "not_found", 1_000),)),
            ("partial", 1, "silent_account", 'account "eu": none of 1,000 queried devices exists on the platform'),
        ),
        (
            counted(pending=900, unsampled=900, selection=SelectionInfo("sample", precision=0.01)),
            ("partial", 1, "imprecise", "the precision is unknown, 1% is required"),
        ),
        (
            counted(pending=900, unsampled=900, selection=SelectionInfo("sample")),
            ("partial", 0, "success", "all 100 sampled devices have an answer"),
        ),
    ],
)  # fmt: skip
def test_run_ends_with_a_state_a_code_and_a_reason(manifest: Manifest, expected: tuple[str, int, str, str]) -> None:
    reason = "the deadline was reached" if "deadline" in expected[3] else None
    concluded, code, why = conclude(manifest, reason, interrupted=False)
    assert (concluded.state, code, why.code) == expected[:3]
    assert why.message.startswith(expected[3])
    assert concluded.is_success == (concluded.state in {"complete", "within_tolerance"})


def test_interrupted_run_with_devices_left_is_neither_within_tolerance_nor_too_late() -> None:
    interrupted = conclude(counted(0, 2), "interrupted by SIGTERM", interrupted=True)
    assert interrupted == (counted(0, 2), 130, ExitReason("interrupted", "interrupted by SIGTERM; 2 devices remain"))
    assert conclude(WHOLE, "interrupted by SIGTERM", interrupted=True)[1] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: replace(m, fleet=replace(m.fleet, limit=1_000)),
        lambda m: replace(m, fleet=replace(m.fleet, excluded_accounts=("us",))),
        lambda m: replace(m, unsampled=1),
        lambda m: replace(m, selection=SelectionInfo("sample")),
        lambda m: replace(m, silent=(SilentAccount("eu", "empty", 3),)),
        lambda m: replace(m, state="partial"),
        lambda m: replace(m, state="running"),
        lambda m: replace(m, state="aborted"),
    ],
)
def test_only_a_good_run_of_the_whole_fleet_is_a_success(change: Callable[[Manifest], Manifest]) -> None:
    good = replace(WHOLE, state="within_tolerance")
    assert good.is_success
    assert replace(good, selection=SelectionInfo("rolling")).is_success
    assert not change(good).is_success


def test_each_error_that_ends_an_audit_has_a_word_of_its_own() -> None:
    errors: list[AuditorError] = [
        FleetError(""), AccountStoppedError("eu", ""), RunFolderError(""), RunNotWritableError(""), PolicyError(""),
        AuditInterruptedError(""), AuditorError(""),
    ]  # fmt: skip
    words = [error.reason_code for error in errors]
    assert set(words) < set(get_args(ExitReasonCode))
    assert len(set(words)) == len(words)
    assert AccountStoppedError("eu", "", reason_code="unreachable_account").reason_code == "unreachable_account"


def test_last_line_of_a_log_has_the_exit_code_and_its_reason() -> None:
    reason = ExitReason("too_many_failed", "6 of 1,000 devices failed")
    ended = replace(WHOLE, exit_code=1, exit_reason=reason)
    assert ended.describe_exit() == "exit 1 (too_many_failed): 6 of 1,000 devices failed"
    assert WHOLE.describe_exit() is None
