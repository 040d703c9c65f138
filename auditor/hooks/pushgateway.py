"""Push metrics to a Pushgateway, for machines without node_exporter.

PUT replaces all metrics of the group of an audit, POST those of the same names. The group has the labels ``job`` and
``run`` (https://github.com/prometheus/pushgateway, API).
"""

import base64
from dataclasses import dataclass
from typing import Literal

from auditor.__about__ import VERSION
from auditor.config.secrets import read_secret
from auditor.config.sections import PushgatewaySettings
from auditor.hooks.http_post import PostLimits, post_body
from auditor.models import Secret

LIMITS = PostLimits(seconds=20.0, attempt_seconds=10.0)
"""Limits of a push at the end of a run."""

QUICK = PostLimits(seconds=5.0, attempt_seconds=5.0)
"""Limits of a push while a run is under way: the next one follows soon."""


@dataclass(frozen=True, slots=True)
class Pushgateway:
    """Where the metrics of an audit are pushed.

    Attributes:
        address: of the group of the audit.
        authorization: value of the header ``Authorization``; None: there is none.
    """

    address: Secret
    authorization: Secret | None = None

    async def push(self, text: bytes, *, method: Literal["POST", "PUT"] = "PUT", limits: PostLimits = LIMITS) -> None:
        """Push metrics, with retries; raise WebhookError, without the address, if they are not accepted."""
        receiver = "the Pushgateway"
        await post_body(self.address, text, self._headers, limits=limits, receiver=receiver, method=method)

    def _headers(self, _now: float) -> dict[str, str]:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "User-Agent": f"auditor/{VERSION}"}
        if self.authorization is not None:
            headers["Authorization"] = self.authorization.reveal()
        return headers


def open_pushgateway(settings: PushgatewaySettings, run: str, where: str) -> Pushgateway:
    """Return where the metrics of an audit are pushed; raise SettingsError if the password cannot be read.

    Args:
        settings: the table of the settings.
        run: name of the audit.
        where: where the table is, for errors.
    """
    labels = "/".join(f"{name}@base64/{_encode(value)}" for name, value in (("job", settings.job), ("run", run)))
    address = Secret(f"{settings.address.rstrip('/')}/metrics/{labels}")
    if settings.password is None:
        return Pushgateway(address)
    password = read_secret(settings.password, account=None, key=f"{where}: password")
    pair = f"{settings.username}:{password.reveal()}".encode()
    return Pushgateway(address, Secret(f"Basic {base64.b64encode(pair).decode()}"))


def _encode(text: str) -> str:
    """Return a text as a part of a path, whatever characters it has."""
    return base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode()
