"""Trust: the endpoint's own authority by ``ca_file``, nobody else."""

import ssl
from pathlib import Path

import pytest
import trustme

from auditor.client.client import ApiClient
from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE, module_version_params
from auditor.errors import SettingsError, TransientError
from auditor.models import Device, Secret
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.client.wire.sockets import (
    SUCCESS,
    answering,
    ask,
    client_of,
    endpoint_of,
    everything_in,
    failure_of,
    http,
    serving,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_side(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def pem(authority: trustme.CA, folder: Path) -> str:
    path = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


async def test_the_endpoints_own_authority_is_trusted(authority: trustme.CA, tmp_path: Path) -> None:
    world = World(2, missing=0, silent=0, inactive=0, large=0)
    parameters = module_version_params(Device("a", None, None, world.device(0).iot_id), 1, 200)
    async with Simulator(world, ssl_context=server_side(authority)) as platform:
        endpoint = endpoint_of(platform.endpoint, ca_file=pem(authority, tmp_path))
        async with ApiClient(endpoint, DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret) as client:
            await client.call(LIST_OTA_MODULE_VERSIONS_BY_DEVICE, parameters)
        assert platform.counts.answered == 1


@pytest.mark.parametrize("ca", ["the system's", "another"])
async def test_an_unknown_authority_is_refused_and_the_host_named(
    authority: trustme.CA, tmp_path: Path, ca: str
) -> None:
    ca_file = None if ca == "the system's" else pem(trustme.CA(), tmp_path)
    async with (
        serving(answering(http(SUCCESS)), tls=server_side(authority)) as seen,
        client_of(seen.url, ca_file=ca_file) as client,
    ):
        error = await failure_of(client)
    assert (type(error), error.code) == (TransientError, "auditor.TLS")
    assert "127.0.0.1" in error.message
    assert seen.lines == [], "nothing is sent to whom we do not trust"
    assert "Signature" not in everything_in(error)


async def test_a_certificate_for_another_name_is_refused(authority: trustme.CA, tmp_path: Path) -> None:
    tls = server_side(authority, "elsewhere.example")
    async with (
        serving(answering(http(SUCCESS)), tls=tls) as seen,
        client_of(seen.url, ca_file=pem(authority, tmp_path)) as client,
    ):
        error = await failure_of(client)
    assert error.code == "auditor.TLS"
    assert seen.lines == []


async def test_a_server_that_speaks_no_tls_is_named() -> None:
    async with Simulator(World(1)) as platform, client_of(platform.endpoint.replace("http:", "https:")) as client:
        error = await failure_of(client)
    assert error.code == "auditor.TLS"
    assert "127.0.0.1" in error.message


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_ca_file_that_cannot_be_used_is_a_fault_of_the_settings(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=r"ca_file: .*ca\.pem"):
        async with ApiClient(endpoint_of("https://127.0.0.1:1/", ca_file=str(path)), "id", Secret("s")) as client:
            await ask(client)
