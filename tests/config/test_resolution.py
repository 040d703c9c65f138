"""One path is one file: home directories, and characters that only look like them."""

from pathlib import Path

import pytest

from auditor.cli.app import _expand_home
from auditor.config.loader import load_settings
from auditor.config.resolution import expand_home, resolve_path

ROOT_HOME = Path("~root").expanduser()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize(
    ("path", "expanded"),
    [
        ("~/fleet.csv", "{home}/fleet.csv"),
        ("~", "{home}"),
        ("~/", "{home}/"),
        ("~/~/x", "{home}/~/x"),
        ("~root/fleet.csv", f"{ROOT_HOME}/fleet.csv"),
        ("~fleet.csv", "~fleet.csv"),
        ("~root", "~root"),
        ("~no-such-user/fleet.csv", "~no-such-user/fleet.csv"),
        ("./~/fleet.csv", "./~/fleet.csv"),
        ("fleet~/~x.csv", "fleet~/~x.csv"),
        ("/tmp/~/x", "/tmp/~/x"),
        ("", ""),
    ],
)
def test_only_a_home_directory_at_the_start_is_expanded(home: Path, path: str, expanded: str) -> None:
    assert expand_home(path) == expanded.format(home=home)


def test_paths_are_relative_to_the_folder_or_in_the_home_directory(home: Path) -> None:
    assert resolve_path(Path("settings"), "~x.csv") == "settings/~x.csv"
    assert resolve_path(Path("settings"), "~/x.csv") == f"{home}/x.csv"


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("--fleet=~/x.csv", "--fleet={home}/x.csv"),
        ("~/x.csv", "{home}/x.csv"),
        ("--fleet=~x.csv", "--fleet=~x.csv"),
        ("SELECT '~/x' = 1", "SELECT '~/x' = 1"),
        ("x=~/y", "x=~/y"),
    ],
)
def test_arguments_mean_the_same_file_with_and_without_a_shell(home: Path, argument: str, expanded: str) -> None:
    assert _expand_home(argument) == expanded.format(home=home)


def test_every_path_of_the_settings_may_be_in_the_home_directory(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    (home / "ca.pem").write_text("x")
    (home / "shared").mkdir()
    (tmp_path / "s.toml").write_text("""
directory = "~/audits"
since = "~/audits/earlier"
quota_sharing = { directory = "~/shared" }
policy = { file = "~/rules.toml" }
report = { html = "~/r.html", excel = "~/r.xlsx", metrics = "~/r.prom" }
[[notify]]
name = "ops"
webhook = { file = "~/hook" }
secret = { command = ["~/bin/secret", "~/not-a-path-of-ours"] }
[[account]]
name = "eu"
endpoint = "https://host.example:8686/"
access_key_id = { file = "~/id" }
access_key_secret = { file = "~secret" }
ca_file = "~/ca.pem"
proxy = { file = "~/proxy" }
fleet = { file = "~/fleet.csv" }
""")
    found = load_settings(tmp_path / "s.toml")
    (account,) = found.account
    assert (found.directory, found.since) == (f"{home}/audits", f"{home}/audits/earlier")
    assert found.quota_sharing.directory == f"{home}/shared"  # type: ignore[union-attr]
    assert found.policy is not None
    assert found.policy.file == f"{home}/rules.toml"
    assert (found.report.html, found.report.excel) == (f"{home}/r.html", f"{home}/r.xlsx")
    assert found.report.metrics == f"{home}/r.prom"
    (notify,) = found.notify
    assert notify.webhook.file == f"{home}/hook"  # type: ignore[union-attr]
    assert notify.secret.command == (f"{home}/bin/secret", "~/not-a-path-of-ours")  # type: ignore[union-attr]
    assert account.access_key_id.file == f"{home}/id"  # type: ignore[union-attr]
    assert account.access_key_secret.file == f"{tmp_path}/~secret"  # type: ignore[union-attr]
    assert (account.ca_file, account.proxy.file) == (f"{home}/ca.pem", f"{home}/proxy")  # type: ignore[union-attr]
    assert account.fleet is not None
    assert account.fleet.file == f"{home}/fleet.csv"
