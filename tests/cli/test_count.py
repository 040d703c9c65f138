"""`auditor count`: a number of devices, and what it depends on."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.conftest import Auditor, StartPlatform


def test_devices_are_counted_with_the_caveat_on_standard_error(auditor: Auditor, start_platform: StartPlatform) -> None:
    platform = start_platform("--devices", 300, "--per-second", 0, "--fleet", "products", "--index-lag", 0)
    done = auditor("count", platform.settings, "--module", "default", "--format", "json")
    assert done.returncode == 0
    document = json.loads(done.stdout)
    (row,) = document["counts"]
    assert "may be behind" in document["caveat"]
    assert row["devices"] > 250
    assert (row["module_name"], row["product_key"], row["module_version"]) == ("default", None, None)
    assert "may be behind the devices" in done.stderr
    table = auditor("count", platform.settings, "--module", "default", "--version", "no-such-version")
    assert table.returncode == 0
    assert "module" in table.stdout
    both = auditor("count", platform.settings, "--module", "default", "--version", "1", "--below", "2")
    assert both.returncode == 2
    assert "leave out one of them" in both.stderr


def test_a_platform_that_cannot_be_searched_ends_with_3(auditor: Auditor, start_platform: StartPlatform) -> None:
    platform = start_platform("--devices", 30, "--per-second", 0, "--fleet", "products")
    done = auditor("count", platform.settings, "--module", "default")
    assert done.returncode == 3
    assert "cannot be searched" in done.stderr


@pytest.mark.slow
def test_versions_that_cannot_be_compared_are_noted_as_by_devices(
    auditor: Auditor, start_platform: StartPlatform
) -> None:
    platform = start_platform("--devices", 300, "--per-second", 0, "--fleet", "products", "--index-lag", 0)
    folder = auditor("run", platform.settings).stdout.strip()
    inventory = json.loads(auditor("inventory", folder, "--module", "default", "--format", "json").stdout)
    below = f"{inventory['inventory'][0]['module_version']}-hotfix2"
    noted = re.search(r"note: ([\d,]+) devices run a version that", auditor(
        "devices", folder, "--module", "default", "--below", below
    ).stderr)  # fmt: skip
    assert noted is not None
    done = auditor("count", platform.settings, "--module", "default", "--below", below)
    assert done.returncode == 0
    sentence = (
        f"{noted[1]} devices of {Path(folder).name} run a version that cannot be compared with {below}; only the row"
    )
    assert sentence in done.stderr
    refused = auditor("count", platform.settings, "--module", "default", "--below", "banana")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--below banana: none of the versions of default in" in refused.stderr
