"""Credentials of the accounts of an audit, read before the first request."""

from typing import NamedTuple

from auditor.client.connector import ssl_context
from auditor.config.credentials import quota_identity, read_access_key
from auditor.config.proxy import Proxy, resolve_proxy
from auditor.config.secrets import read_secret
from auditor.config.settings import Account, Settings, SharedQuotaSettings
from auditor.config.validation import check_distinct_quotas
from auditor.errors import CredentialsError
from auditor.models import AccessKey, Secret


class Credentials(NamedTuple):
    """How to authenticate as an account, and at the Redis server through which quotas are shared, if there is one.

    ``key`` is None if it cannot be obtained yet; ``identity`` is what processes that share the quota have in common.
    """

    key: AccessKey | None
    identity: str
    proxy: Proxy | None = None
    redis_password: Secret | None = None


def read_credentials(settings: Settings) -> list[Credentials]:
    """Read the credentials of all accounts, in their order, and check their ``ca_file``; may block: use a thread.

    Accounts are read one after the other, so that two password commands never prompt at the same time.

    Raises:
        SettingsError: a credential is missing or cannot be used, or two accounts have the same quota.
    """
    sharing = settings.quota_sharing
    password = sharing.password if isinstance(sharing, SharedQuotaSettings) else None
    redis_password = None if password is None else read_secret(password, account=None, key="quota_sharing: password")
    credentials = [_read_account_credentials(account, redis_password) for account in settings.account]
    pairs = zip(settings.account, credentials, strict=True)
    check_distinct_quotas((f'account "{account.name}"', account, own.identity) for account, own in pairs)
    return credentials


def _read_account_credentials(account: Account, redis_password: Secret | None) -> Credentials:
    if account.ca_file is not None:
        ssl_context(account.ca_file)
    try:
        key = read_access_key(account)
    except CredentialsError:  # of this account alone: its first request tries again, and stops it
        key = None
    return Credentials(key, quota_identity(account, key), resolve_proxy(account), redis_password)
