"""A service on loopback that gives temporary access keys of a simulated platform, as a CredentialsURI does."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from aiohttp import web

from auditor.models import AccessKey
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator


@dataclass
class CredentialsService:
    """``issued`` are the keys given so far; while ``refusing`` is a code, there are none."""

    platform: Simulator
    seconds: float
    uri: str = ""
    refusing: str | None = None
    issued: list[AccessKey] = field(default_factory=list)

    def issue(self) -> AccessKey:
        self.issued.append(self.platform.issue_key(DEFAULT_ACCOUNT.access_key_id, self.seconds))
        return self.issued[-1]

    async def answer(self, _: web.Request) -> web.Response:
        if self.refusing is not None:
            secret = self.issued[-1].token.reveal() if self.issued and self.issued[-1].token else ""
            return web.json_response({"Code": self.refusing, "Message": f"not for {secret}"}, status=403)
        return web.json_response(key_document(self.issue()))


def key_document(key: AccessKey) -> dict[str, str]:
    expires = datetime.fromtimestamp(key.expires_at or 0, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "Code": "Success",
        "AccessKeyId": key.key_id,
        "AccessKeySecret": key.secret.reveal(),
        "SecurityToken": "" if key.token is None else key.token.reveal(),
        "Expiration": expires,
    }


def printed_key(key: AccessKey) -> str:
    return json.dumps(key_document(key))


@asynccontextmanager
async def credentials_service(platform: Simulator, *, seconds: float) -> AsyncIterator[CredentialsService]:
    service = CredentialsService(platform, seconds)
    app = web.Application()
    app.router.add_get("/key", service.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        service.uri = f"http://127.0.0.1:{runner.addresses[0][1]}/key"
        yield service
    finally:
        await runner.cleanup()
