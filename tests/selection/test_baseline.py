"""Previous results of a run, for the next one."""

from pathlib import Path

import pytest

from auditor.selection.baseline import Baseline
from tests.database import connect
from tests.runs.run_folders import build, named, ok

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("content", [None, "version = ", 'rules = "none"\n'], ids=["moved", "cut off", "no policy"])
async def test_policy_that_cannot_be_read_leaves_results_without_priority(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.toml"
    if content is not None:
        policy.write_text(content)
    fleet = [named(number) for number in range(3)]
    run = build(tmp_path / "run", fleet, [ok(device, ("ble", "1")) for device in fleet]).folder
    baseline = Baseline(run, tmp_path / "baseline.parquet", str(policy))
    path = await baseline.read()
    assert path is not None
    with connect() as database:
        rows = database.execute(f"SELECT violating, count(*) FROM read_parquet('{path}') GROUP BY ALL").fetchall()
    assert rows == [(False, 3)]
    output = capsys.readouterr()
    assert "policy cannot be read" in output.out + output.err
    assert str(policy) in output.out + output.err
