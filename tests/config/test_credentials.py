"""Ways to an access key: which settings are refused, what is read, and what the vendor's library may see and say."""

import asyncio
import json
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio.to_thread
import msgspec
import pytest
import trustme
from aiohttp import web

from auditor.client.signing import signature
from auditor.config import credentials as ways
from auditor.config.credentials import parse_key_document, quota_identity, read_access_key
from auditor.config.loader import parse_settings
from auditor.config.serialization import settings_to_dict
from auditor.config.settings import Account
from auditor.config.vendor_credentials import _describe
from auditor.errors import CredentialsError, SettingsError
from auditor.models import AccessKey, Secret
from auditor.simulator.gateway import signed_text
from auditor.text.extras import describe_extra

CANARY = "c4n4ryT0ken9f8e7d"
ROLE = "acs:ram::123456789:role/auditor"
STORED = {"type": "access_key", "access_key_id": "LTAI", "access_key_secret": {"env": "KEY_SECRET"}}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of the machine that runs the tests, and no metadata service of its cloud."""
    for name in ("ACCESS_KEY_ID", "ACCESS_KEY_SECRET", "PROFILE", "CREDENTIALS_URI", "ROLE_ARN", "STS_REGION"):
        monkeypatch.delenv(f"ALIBABA_CLOUD_{name}", raising=False)
    monkeypatch.setenv("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KEY_SECRET", "the-secret")


def account_with(credentials: object, **changes: object) -> Account:
    table = {"name": "eu", "endpoint": "https://iot.example/", "credentials": credentials, **changes}
    return parse_settings({"account": [table]}).account[0]


def role_with(source: object = STORED, **changes: object) -> dict[str, object]:
    return {"type": "ram_role_arn", "role_arn": ROLE, "source": source, **changes}


@pytest.mark.parametrize(
    ("credentials", "says"),
    [
        ({}, 'credentials: give { type = "…", … } or { command'),
        ({"type": "sso"}, 'credentials: type: give one of "access_key", "sts", '),
        ({"type": "default", "command": ["x"], "format": "json"}, "credentials: give { type"),
        ({"type": "default", "profile": "a"}, 'credentials: profile: type "default" has no such key; leave it out'),
        ({"command": ["x"]}, 'credentials: a command needs format = "json"'),
        ({"command": [], "format": "json"}, "credentials: command: is empty"),
        ({"command": ["x"], "format": "xml"}, 'credentials: format: give "json"'),
        ({"command": "x", "format": "json"}, "credentials: command: give the words of a command"),
        ({"type": "profile"}, 'credentials: type "profile" needs profile'),
        ({"type": "profile", "profile": ""}, "credentials: profile: is empty"),
        ({"type": "profile", "profile": "a\nb"}, "credentials: profile: is empty or has control characters"),
        (
            {"type": "sts", **{key: STORED[key] for key in ("access_key_id", "access_key_secret")}},
            "needs security_token",
        ),
        ({**STORED, "access_key_secret": CANARY}, "credentials: access_key_secret: keep it out of the settings"),
        ({**STORED, "access_key_secret": {"env": "A", "file": "b"}}, "credentials: access_key_secret: give one of"),
        ({"type": "ram_role_arn", "role_arn": ROLE}, 'credentials: type "ram_role_arn" needs source'),
        (role_with(role_arn="auditor"), "credentials: role_arn: is not a name such as acs:ram::"),
        (role_with(role_session_expiration=60), "credentials: role_session_expiration: give whole seconds from 900"),
        (role_with(sts_endpoint="https://sts/"), "credentials: sts_endpoint: give the name of a host"),
        (
            role_with({"type": "ecs_ram_role", "rol_name": "x"}),
            "source: rol_name is not a setting; did you mean role_name",
        ),
        (role_with(role_with(role_with(role_with()))), "source: source: more than 2 roles in a row"),
        ({"type": "credentials_uri", "credentials_uri": "ftp://h/"}, "credentials_uri: is not an address such as http"),
        ({"type": "credentials_uri", "credentials_uri": f"http://u:{CANARY}@h/"}, "keep passwords out of the settings"),
        ({"type": "credentials_uri", "credentials_uri": f"http://h/?t={CANARY}"}, "keep passwords out of the settings"),
    ],
)
def test_a_wrong_combination_is_one_sentence(credentials: object, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        account_with(credentials)
    assert str(refused.value).startswith('settings: account 1 ("eu"): credentials: ')
    assert says in str(refused.value)
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize("key", ["access_key_id", "access_key_secret"])
def test_credentials_and_a_stored_key_exclude_each_other(key: str) -> None:
    value = "LTAI" if key == "access_key_id" else {"env": "A"}
    with pytest.raises(SettingsError, match=f"{key}: credentials already lead to a key; leave out one of both"):
        account_with({"type": "default"}, **{key: value})


def test_settings_with_credentials_are_stored_with_absolute_paths_and_read_again(tmp_path: Path) -> None:
    source = {"type": "oidc_role_arn", "role_arn": ROLE, "oidc_provider_arn": "p", "oidc_token_file": "tokens/a"}
    table = {"name": "eu", "endpoint": "https://iot.example/", "credentials": role_with(source)}
    command = {"name": "us", "endpoint": "https://us.example/", "credentials": {"command": ["./key"], "format": "json"}}
    read = parse_settings({"account": [table, command]}, folder=tmp_path)
    stored = json.loads(json.dumps(settings_to_dict(read)))
    assert stored["account"][0]["credentials"]["source"]["oidc_token_file"] == str(tmp_path / "tokens/a")
    assert stored["account"][1]["credentials"]["command"] == [str(tmp_path / "key")]
    assert settings_to_dict(parse_settings(stored)) == stored


def test_two_accounts_with_the_same_credentials_and_endpoint_are_refused() -> None:
    tables = [{"name": name, "endpoint": "https://iot.example/", "credentials": {"type": "default"}} for name in "ab"]
    with pytest.raises(SettingsError, match="has the same endpoint and key"):
        parse_settings({"account": tables})


def test_a_quota_is_shared_by_what_stays_the_same_when_a_key_is_renewed() -> None:
    def identity(credentials: object, key_id: str) -> str:
        return quota_identity(account_with(credentials), AccessKey(key_id, Secret("s")))

    assert identity(role_with(), "STS.1") == identity(role_with({"type": "default"}), "STS.2") == ROLE
    assert identity({"type": "default"}, "STS.1") == identity({"type": "default"}, "STS.2")
    assert identity({"type": "default"}, "STS.1") != identity({"type": "profile", "profile": "a"}, "STS.1")
    assert identity(STORED, "LTAI") == "LTAI"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ("", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        ("{}", "has no AccessKeyId"),
        ('{"AccessKeyId": "a"}', "has no AccessKeySecret"),
        (f'{{"AccessKeyId": "a", "AccessKeySecret": ["{CANARY}"]}}', "AccessKeySecret that is not a printable text"),
        (f'{{"AccessKeyId": "a", "AccessKeySecret": "{CANARY}\\n"}}', "AccessKeySecret that is not a printable text"),
        ('{"data": {"access_key": "a"}}', "has no AccessKeySecret"),
    ],
)
def test_a_document_that_is_no_key_is_a_sentence_without_it(document: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        parse_key_document(document.encode(), "where")
    assert CANARY not in str(refused.value)


@pytest.mark.parametrize(
    "document",
    [
        '{"AccessKeyId": "a", "AccessKeySecret": "b", "SecurityToken": "c", "Expiration": "2030-01-01T00:00:00Z"}',
        '{"Credentials": {"AccessKeyId": "a", "AccessKeySecret": "b", "SecurityToken": "c", "Expiration": 1893456000}}',
        '{"mode": "StsToken", "access_key_id": "a", "access_key_secret": "b", "sts_token": "c", "expiration": "2030-01-01"}',
        '{"data": {"access_key": "a", "secret_key": "b", "security_token": "c", "expiration": 1893456000000}}',
        '{"AccessKeyId": "a", "SecretAccessKey": "b", "SessionToken": "c", "Expiration": "2030-01-01T02:00:00+02:00"}',
    ],
)
def test_keys_are_read_as_common_programs_print_them(document: str) -> None:
    key = parse_key_document(document.encode(), "where")
    assert key.is_same(AccessKey("a", Secret("b"), Secret("c")))
    assert key.expires_at == datetime(2030, 1, 1, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "expiration", ['"soon"', "NaN", "Infinity", "-Infinity", "1e400", "9" * 400, "-" + "9" * 400, "{}", "null"]
)
def test_an_expiration_that_cannot_be_read_is_unknown(expiration: str) -> None:
    document = f'{{"AccessKeyId": "a", "AccessKeySecret": "b", "Expiration": {expiration}}}'
    key = parse_key_document(document.encode(), "where")
    assert (key.expires_at, key.token) == (None, None)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key_id": 123}, "the default chain has a AccessKeyId that is not a printable text"),
        ({"key_id": None}, "the default chain has no AccessKeyId"),
        ({"secret": ""}, "the default chain has no AccessKeySecret"),
        ({"token": ["t"]}, "the default chain has a SecurityToken that is not a printable text"),
    ],
)
def test_what_the_library_answers_is_checked(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], says: str
) -> None:
    answer: dict[str, object] = {"key_id": "a", "secret": "b", "token": None, "expires_at": float("nan")}

    def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(command, 0, json.dumps(answer).encode())

    monkeypatch.setattr("auditor.config.credentials.subprocess.run", run)
    key = read_access_key(account_with({"type": "default"}))
    assert (key.key_id, key.expires_at) == ("a", None)
    answer |= changes
    with pytest.raises(SettingsError, match=says):
        read_access_key(account_with({"type": "default"}))


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "LIBRARY", "alibabacloud_absent")
    with pytest.raises(
        SettingsError, match=re.escape(f"ram_role_arn needs alibabacloud-absent: {describe_extra('credentials')}")
    ):
        read_access_key(account_with(role_with()))


async def read_with_library(credentials: object, **changes: object) -> AccessKey:
    return await anyio.to_thread.run_sync(read_access_key, account_with(credentials, **changes))


AUTHORITY = trustme.CA()


class SecurityTokenService:
    """A service for tokens behind a proxy, which leads to it whatever host is requested."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.proxy_port = self.port = 0
        self.status = 200
        self.requests: list[dict[str, str]] = []
        self.tasks: set[asyncio.Task[None]] = set()

    async def answer(self, request: web.Request) -> web.Response:
        parameters = dict(request.query)
        self.requests.append(parameters)
        if self.status != 200:
            message = f"server string to sign is: {parameters.get('SecurityToken')}"
            return web.json_response({"Code": "NoPermission", "Message": message}, status=self.status)
        key = {"AccessKeyId": "STS.role", "AccessKeySecret": "s", "SecurityToken": CANARY}
        return web.json_response({"Credentials": key | {"Expiration": "2030-01-01T00:00:00Z"}})

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.lines.append(head.split(b"\r\n")[0].decode())
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        there, back = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            await asyncio.gather(copy(reader, back), copy(there, writer))
        finally:
            for each in (writer, back):
                each.transport.abort()

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.get_running_loop().create_task(self.connect(reader, writer)))


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65_536):
        writer.write(chunk)
    writer.close()


@asynccontextmanager
async def token_service() -> AsyncIterator[SecurityTokenService]:
    service = SecurityTokenService()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert("sts.aliyuncs.com", "sts.cn-shanghai.aliyuncs.com").configure_cert(context)
    app = web.Application()
    app.router.add_route("*", "/", service.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    service.port = runner.addresses[0][1]
    proxy = await asyncio.start_server(service.connected, "127.0.0.1", 0)
    service.proxy_port = proxy.sockets[0].getsockname()[1]
    try:
        yield service
    finally:
        proxy.close()
        for task in service.tasks:
            task.cancel()
        await asyncio.gather(*service.tasks, return_exceptions=True)
        await runner.cleanup()


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest.mark.anyio
async def test_a_role_is_assumed_through_the_accounts_proxy(trusted: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async with token_service() as service:
        proxy = f"http://127.0.0.1:{service.proxy_port}"
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
        monkeypatch.setenv("NO_PROXY", "*")
        key = await read_with_library(role_with(external_id="x-1"), proxy=proxy)
        assert key.is_same(AccessKey("STS.role", Secret("s"), Secret(CANARY)))
        assert key.expires_at == datetime(2030, 1, 1, tzinfo=UTC).timestamp()
        assert [line.split()[:2] for line in service.lines] == [["CONNECT", "sts.aliyuncs.com:443"]]
        (sent,) = service.requests
        assert (sent["RoleArn"], sent["RoleSessionName"], sent["ExternalId"]) == (ROLE, "auditor", "x-1")
        assert sent["Signature"] == signature(Secret("the-secret"), signed_text("GET", sent))
        service.status = 403
        static = {**STORED, "type": "sts", "security_token": {"env": "KEY_SECRET"}}
        with pytest.raises(CredentialsError) as refused:
            await read_with_library(role_with(static), proxy=proxy)
    assert refused.value.refused
    assert str(refused.value) == (
        f'account "eu": credentials: the role {ROLE}, assumed with the stored access key gives no access key: '
        "it is refused: NoPermission (HTTP 403)"
    )


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("proxy", "no_proxy", "tunnels"), [(None, "", 0), ("environment", "", 1), ("environment", "aliyuncs.com", 0)]
)
async def test_proxies_of_the_environment_are_used_only_where_they_are_configured(
    trusted: None, monkeypatch: pytest.MonkeyPatch, proxy: str | None, no_proxy: str, tunnels: int
) -> None:
    async with token_service() as service:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{service.proxy_port}")
        monkeypatch.setenv("no_proxy", no_proxy)
        account = account_with(role_with(), **({} if proxy is None else {"proxy": proxy}))
        assert account.credentials is not None
        proxies = ways._proxies(account.credentials, account, "where")
        assert len(proxies) == tunnels
        if tunnels:
            await anyio.to_thread.run_sync(read_access_key, account)
        assert len(service.lines) == tunnels


@pytest.mark.parametrize(
    ("uri", "proxied"),
    [
        ("http://127.0.0.1:8080/k", False),
        ("http://localhost/k", False),
        ("http://169.254.1.2/k", False),
        ("http://keys.example/k", True),
    ],
)
def test_local_services_are_reached_without_a_proxy(uri: str, proxied: bool) -> None:  # noqa: FBT001
    account = account_with({"type": "credentials_uri", "credentials_uri": uri}, proxy="http://proxy.example:3128")
    assert account.credentials is not None
    proxies = ways._proxies(account.credentials, account, "where")
    assert ("http" in proxies) == proxied
    read = urlsplit(ways._read_uri(account.credentials, account, "where"))
    assert (read.hostname, read.port) == (urlsplit(uri).hostname, urlsplit(uri).port or 80)


@pytest.mark.slow
@pytest.mark.anyio
async def test_profiles_of_aliyun_are_read_and_those_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(CredentialsError, match=r'the profile "iot" of aliyun gives no access key: unable to open'):
        await read_with_library({"type": "profile", "profile": "iot"})
    (tmp_path / ".aliyun").mkdir()
    token = {"access_key_id": "STS.p", "access_key_secret": "s", "sts_token": CANARY}
    profiles = [{"name": "iot", "mode": "StsToken", **token}, {"name": "odd", "mode": "Odd"}]
    (tmp_path / ".aliyun" / "config.json").write_text(json.dumps({"current": "iot", "profiles": profiles}))
    for credentials in ({"type": "profile", "profile": "iot"}, {"type": "default"}):
        key = await read_with_library(credentials)
        assert key.is_same(AccessKey("STS.p", Secret("s"), Secret(CANARY)))
    with pytest.raises(CredentialsError, match="unsupported profile mode 'Odd'"):
        await read_with_library({"type": "profile", "profile": "odd"})


def test_a_process_of_the_library_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "LIBRARY_TIMEOUT", 0.05)
    with pytest.raises(CredentialsError, match=r"gives no access key: no answer within 0\.05 s") as slow:
        read_access_key(account_with({"type": "default"}))
    assert not slow.value.refused


class _Failed(Exception):  # noqa: N818  it has the name of none of the library's
    pass


@pytest.mark.parametrize(
    ("text", "said", "refused"),
    [
        (
            'error, http_code: 403, result: {"Code":"NoPermission","Message":"TOKEN"}',
            "it is refused: NoPermission (HTTP 403)",
            True,
        ),
        (
            'error, http_code: 400, result: {"Code":"Throttling.User","Message":"TOKEN"}',
            "its answer is Throttling.User (HTTP 400)",
            False,
        ),
        ("error, http_code: 503, result: TOKEN", "its answer is HTTP 503", False),
        ("error, http_code: 429, result: TOKEN", "its answer is HTTP 429", False),
        (
            "failed to execute external command: exit status 3\nstderr: TOKEN",
            "its command ends with exit status 3",
            False,
        ),
        (
            "unable to load credentials from any of the providers in the chain: TOKEN",
            "none of its providers has one",
            False,
        ),
        ("retrieved TOKEN", "the answer is none that the vendor's library reads (_Failed)", False),
    ],
)
def test_what_the_library_says_is_repeated_without_what_an_answer_contains(text: str, said: str, refused: bool) -> None:  # noqa: FBT001
    answer = _describe(_Failed(text.replace("TOKEN", CANARY)))
    assert answer == {"error": said, "refused": refused}


def test_credentials_are_shown_without_secrets() -> None:
    key = AccessKey("STS.1", Secret(CANARY), Secret(CANARY))
    assert CANARY not in repr(key)
    with pytest.raises(TypeError):
        msgspec.json.encode(key)
    assert partial(repr, key)().count("***") == 2
