"""An account's proxy: read from the settings, used by whole audits, and its password told nowhere."""

import json
from pathlib import Path

import pytest

import auditor
from auditor.audit.preflight import preflight
from auditor.config.proxy import Proxy, resolve_proxy
from auditor.config.serialization import RUN_INDEPENDENT_KEYS, diff_settings, settings_to_dict
from auditor.errors import SettingsError
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.client.wire.proxying import PASSWORD, QUOTED_PASSWORD, TOKEN, USER, proxying
from tests.config.test_loader import account, refused
from tests.integration.test_audit import account_table, assert_matches, settings_for

VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without a proxy."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def read(proxy: object, endpoint: str = "https://si.tuyacloud.com:8686/") -> Proxy | None:
    (only,) = auditor.parse_settings({"account": [account(proxy=proxy, endpoint=endpoint)]}).account
    return resolve_proxy(only)


def shown(proxy: Proxy | None) -> tuple[str, str | None] | None:
    return None if proxy is None else (proxy.url, None if proxy.authorization is None else proxy.authorization.reveal())


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128"),
        ("HTTP://Proxy.example:3128/", "http://proxy.example:3128"),
        ("http://10.0.0.1", "http://10.0.0.1:80"),
        ("http://[::1]:3128", "http://[::1]:3128"),
    ],
)
def test_a_valid_proxy_address_is_accepted(address: str, url: str) -> None:
    assert shown(read(address)) == (url, None)


@pytest.mark.parametrize(
    "proxy",
    ["", "proxy:3128", "https://proxy:3128", "socks5://proxy:1080", "http://", "http://p:0", "http://p:x", "http://[::1",
     "http://p/path", "http://p?a", "http://p o", "enviroment", 3128, ["http://p"]],
)  # fmt: skip
def test_an_invalid_proxy_is_refused(proxy: object) -> None:
    assert refused({"account": [account(proxy=proxy)]}).startswith('account 1 ("eu"): proxy: ')


@pytest.mark.parametrize("form", ["http://{}@p:1", "http://u:{}@p:1", "http://u:{}@p:x", "u:{}@p"])
def test_a_proxy_password_in_the_settings_is_refused_and_not_quoted(form: str) -> None:
    text = refused({"account": [account(proxy=form.format(QUOTED_PASSWORD))]})
    assert "keep the password out of the settings" in text
    assert QUOTED_PASSWORD not in text


@pytest.mark.parametrize("source", [{}, {"env": "A", "file": "b"}, {"evn": "A"}, {"command": []}])
def test_an_invalid_source_of_a_proxy_is_refused(source: object) -> None:
    assert "proxy: " in refused({"account": [account(proxy=source)]})


def test_an_address_with_a_password_is_stored_elsewhere(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("EU_PROXY", f"http://{USER}:{QUOTED_PASSWORD}@proxy.example:3128")
    found = read({"env": "EU_PROXY"})
    assert shown(found) == ("http://proxy.example:3128", f"Basic {TOKEN}")
    assert not any(each in repr(found) for each in (PASSWORD, QUOTED_PASSWORD, TOKEN))
    environment.setenv("EU_PROXY", f"https://{USER}:{QUOTED_PASSWORD}@proxy.example:3128")
    with pytest.raises(SettingsError, match='account "eu": proxy: is not the address of a proxy') as caught:
        read({"env": "EU_PROXY"})
    assert QUOTED_PASSWORD not in str(caught.value)
    environment.delenv("EU_PROXY")
    with pytest.raises(SettingsError, match='account "eu": proxy: the environment variable EU_PROXY is not set'):
        read({"env": "EU_PROXY"})


def test_environment_variables_count_only_if_configured(environment: pytest.MonkeyPatch) -> None:
    assert read("environment") is None
    environment.setenv("HTTPS_PROXY", f"http://{USER}:{QUOTED_PASSWORD}@secure.example:1")
    environment.setenv("HTTP_PROXY", "plain.example:2")
    assert read(None) is None
    assert shown(read("environment")) == ("http://secure.example:1", f"Basic {TOKEN}")
    assert shown(read("environment", "http://h/")) == ("http://plain.example:2", None)
    environment.setenv("HTTPS_PROXY", f"socks5://{USER}:{QUOTED_PASSWORD}@secure.example:1")
    with pytest.raises(SettingsError, match='account "eu": proxy: HTTPS_PROXY: is not the address of') as caught:
        read("environment")
    assert QUOTED_PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("exempt", "direct"),
    [
        ("*", True), ("tuyacloud.com", True), (".tuyacloud.com", True), ("other.com, SI.tuyacloud.com", True),
        ("si.tuyacloud.com:8686", True), ("si.tuyacloud.com:443", False), ("cloud.com", False), ("", False),
    ],
)  # fmt: skip
def test_no_proxy_exempts_hosts(environment: pytest.MonkeyPatch, exempt: str, direct: bool) -> None:  # noqa: FBT001
    environment.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    environment.setenv("NO_PROXY", exempt)
    assert (read("environment") is None) == direct


@pytest.mark.anyio
async def test_an_audit_through_a_proxy_is_complete_and_its_password_is_in_no_file(
    tmp_path: Path, environment: pytest.MonkeyPatch
) -> None:
    world = World(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform, proxying(password=True) as by:
        environment.setenv("EU_PROXY", by.address)
        table = account_table(platform.endpoint, tmp_path, proxy={"env": "EU_PROXY"})
        result = await auditor.run_audit(settings_for(tmp_path, table, concurrency=4))
    assert result.manifest.state == "complete"
    assert_matches(world, result.folder)
    assert len(by.heads) == platform.counts.received
    kept = json.loads((result.folder / "run.json").read_text())["settings"]["account"][0]
    assert kept["proxy"] == {"env": "EU_PROXY"}
    written = b"".join(path.read_bytes() for path in result.folder.iterdir())
    assert not any(each.encode() in written for each in (PASSWORD, QUOTED_PASSWORD, TOKEN))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n", "does not accept the user and password, or requires them"),
        (b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n", "does not connect to 127.0.0.1: status 502; check"),
        (None, "cannot be reached: Connection refused; check its proxy"),
    ],
)
async def test_a_check_reports_a_broken_proxy(
    tmp_path: Path, environment: pytest.MonkeyPatch, answer: bytes | None, says: str
) -> None:
    (tmp_path / "fleet.csv").write_text("iot_id\none\n")
    async with proxying(answer=answer) as by:
        environment.setenv("EU_PROXY", f"http://{USER}:{QUOTED_PASSWORD}@{by.place if answer else '127.0.0.1:1'}")
        table = account_table("http://127.0.0.1:2/", tmp_path, proxy={"env": "EU_PROXY"})
        (found,) = await preflight(settings_for(tmp_path, table, give_up_after=0.2))
    assert found.problem is not None
    assert f"auditor.Proxy: the proxy {by.place if answer else '127.0.0.1:1'} {says}" in found.problem
    assert "\n" not in found.problem
    assert "platform refuses" not in found.problem
    assert len(by.heads) <= (1 if "user" in says else 5), "a wrong password is not tried again"


def test_a_run_may_be_resumed_through_another_proxy() -> None:
    one, other = (
        auditor.parse_settings({"account": [account(proxy=proxy)]}) for proxy in ("http://one:3128", "environment")
    )
    assert diff_settings(one, other) == ['account "eu": proxy changed from "http://one:3128" to "environment"']
    assert diff_settings(one, other, ignore=RUN_INDEPENDENT_KEYS) == []
    assert auditor.parse_settings(settings_to_dict(one)).account[0].proxy == "http://one:3128"
