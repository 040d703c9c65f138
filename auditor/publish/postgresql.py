"""Publish runs to PostgreSQL: one transaction for each run, so that a reader sees all of a run or nothing of it.

DuckDB writes the rows as CSV into a pipe, and ``COPY`` reads them from it. No row passes through Python, and blocks
have a fixed size.
"""

import contextlib
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import msgspec

from auditor.concurrency import TimeLimit
from auditor.config.secrets import read_secret
from auditor.config.settings import SecretSource
from auditor.errors import DestinationError, SettingsError, UsageError
from auditor.publish.postgresql_schema import migrate, read_version
from auditor.publish.tables import TABLES, TABLES_VERSION, PublishedRun, PublishedTable, open_published
from auditor.storage.database import sql_identifier
from auditor.storage.tables import translate_read_errors
from auditor.text.extras import describe_extra
from auditor.text.formatting import parse_manifest_time, safe

if TYPE_CHECKING:
    import psycopg

BLOCK_BYTES = 1 << 20
"""Bytes that are read from the pipe and sent together."""

CONNECT_SECONDS = 10.0
"""Seconds to wait for a connection."""

ABANDONED_SECONDS = 60
"""Seconds after which the server ends a transaction of a client that does nothing, such as one whose machine failed."""

MAX_TIMEOUT_SECONDS = 1e6
"""Seconds up to which the server limits a statement; its limit is a number of 32 bits, of milliseconds."""

MAX_NAME_BYTES = 63
"""Longest name in PostgreSQL, which cuts longer ones off."""

NUL_SYMBOL = "\N{SYMBOL FOR NULL}"
"""What is stored in place of the character NUL, which PostgreSQL cannot store in any text."""

_SYSTEM_AUTHORITIES = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)  # fmt: skip
"""Where Debian, Red Hat, SUSE, and Alpine or macOS have the authorities that they trust."""

SslMode = Literal["disable", "require", "verify-ca", "verify-full"]
"""How TLS is used, as libpq names it. ``require`` encrypts without a check of the server's certificate."""


class PostgresqlSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A PostgreSQL database in the settings.

    Attributes:
        host: name or address of the server, or the folder of its Unix socket.
        database, user: names.
        password: where it is stored; None: the server requires none, or ``~/.pgpass`` has it.
        port: port of the server.
        schema: schema that has the tables.
        ssl_mode: ``verify-full``, ``verify-ca``, ``require`` or ``disable``. A Unix socket uses no TLS.
        ca_file: PEM file with the authorities to trust; None: those of the system.
        certificate_file, key_file: PEM files of a client certificate and its key.
    """

    host: str
    database: str
    user: str
    password: SecretSource | None = None
    port: int = 5432
    schema: str = "auditor"
    ssl_mode: SslMode = "verify-full"
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None


class PostgresqlDestination:
    """A PostgreSQL database that has runs in a schema of its own.

    Its methods raise DestinationError with one sentence, which has no secret.
    """

    settings_type: ClassVar = PostgresqlSettings

    def __init__(self, settings: PostgresqlSettings) -> None:
        """Check the settings; nothing is sent, and no password is read.

        Raises:
            SettingsError: an option cannot be used.
        """
        _check_settings(settings)
        self._settings = settings
        self._schema = sql_identifier(settings.schema)

    def __repr__(self) -> str:
        return f"<PostgresqlDestination {self.describe()}>"

    def describe(self) -> str:
        """Return where the runs are, without secrets."""
        settings = self._settings
        return safe(f"postgresql://{settings.host}:{settings.port}/{settings.database}, schema {settings.schema}")

    def check(self) -> None:
        """Raise SettingsError if the package of PostgreSQL is not installed, or cannot be loaded."""
        try:
            _import_psycopg()
        except UsageError as error:
            raise SettingsError(str(error)) from None

    def published_runs(self, names: Collection[str], limit: TimeLimit) -> dict[str, str]:
        """Return the digest of each of these runs that the database has, by the run's name."""
        with self._connect(limit) as connection, _transaction(connection, limit):
            if read_version(connection, self._settings.schema) is None:
                return {}
            query = f"SELECT run, digest FROM {self._schema}.runs WHERE run = ANY(%s)"
            return dict(connection.execute(query.encode(), [list(names)]).fetchall())

    def publish(self, folder: Path, limit: TimeLimit) -> None:
        """Publish a sealed run in place of what the database has of it; create or migrate the schema where necessary.

        Raises:
            DestinationError: the database cannot be used, or the time is over. It has what it had before; but if the
                connection ended during the commit, it may have the run.
            RunFolderError: the run is not sealed, or cannot be read.
            SettingsError: the password cannot be read.
        """
        with ExitStack() as stack:
            run = stack.enter_context(open_published(folder))
            with translate_read_errors(folder):
                run.query("rollouts")  # is read here, so that no connection waits for it
            connection = stack.enter_context(self._connect(limit))
            self._prepare_schema(connection, limit)
            with _transaction(connection, limit):
                self._lock(connection, run.name)
                is_published = self._check_published(connection, run)
                for name in TABLES:
                    if is_published:
                        self._replace(connection, run, name)
                    else:
                        connection.execute(f"DELETE FROM {self._schema}.{name} WHERE run = %s".encode(), [run.name])
                        self._copy(connection, run, name, f"{self._schema}.{name}")

    def _prepare_schema(self, connection: "psycopg.Connection", limit: TimeLimit) -> None:
        """Create the schema, or migrate one of an older version, in a transaction of its own.

        Views are locked until it ends, so it does not wait for the rows of a run.
        """
        schema = self._settings.schema
        with _transaction(connection, limit):
            if read_version(connection, schema) == TABLES_VERSION:
                return
            # Wait for publications, which share the lock; meanwhile another process may migrate.
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_lock_key(schema)])
            version = read_version(connection, schema)
            self._refuse_newer(version)
            if version != TABLES_VERSION:
                try:
                    migrate(connection, schema)
                except DestinationError as error:
                    raise DestinationError(f"{self.describe()}: {error}", retryable=False) from None

    def _lock(self, connection: "psycopg.Connection", run: str) -> None:
        """Wait until no other process publishes the run or migrates the schema, and let none begin."""
        schema = self._settings.schema
        connection.execute("SELECT pg_advisory_xact_lock_shared(%s)", [_lock_key(schema)])
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_lock_key(schema, run)])
        self._refuse_newer(read_version(connection, schema))

    def _refuse_newer(self, version: int | None) -> None:
        if version is not None and version > TABLES_VERSION:
            has = f"has tables of version {version}, and this auditor writes version {TABLES_VERSION}"
            raise DestinationError(f"{self.describe()}: {has}; update auditor", retryable=False)

    def _check_published(self, connection: "psycopg.Connection", run: PublishedRun) -> bool:
        """Return whether the database has the run.

        Raise DestinationError if it has another run of this name, such as one of another machine.

        A resume changes neither the start of a run nor its accounts. It may add accounts to a partial run, whose
        devices were not listed before. Where the rows of devices were deleted, only the start is compared.
        """
        query = f"SELECT state, started_at FROM {self._schema}.runs WHERE run = %s"
        found = connection.execute(query.encode(), [run.name]).fetchone()
        if found is None:
            return False
        state, started_at = found
        query = f"SELECT DISTINCT account FROM {self._schema}.devices WHERE run = %s"
        accounts = {account for (account,) in connection.execute(query.encode(), [run.name])}
        with translate_read_errors(run.folder):
            rows = run.database.execute(f"SELECT DISTINCT account FROM ({run.query('devices')})").fetchall()
        own = {account.replace("\0", NUL_SYMBOL) for (account,) in rows}
        has_other_accounts = bool(accounts - own) or (state != "partial" and bool(own - accounts))
        if started_at != parse_manifest_time(run.manifest.started_at) or (accounts and has_other_accounts):
            reason = f"has another run of the name {safe(run.name)}, of another start or of other accounts"
            advice = "give each audit that is published here a name of its own in its settings"
            raise DestinationError(f"{self.describe()}: {reason}; {advice}", retryable=False)
        return True

    def _replace(self, connection: "psycopg.Connection", run: PublishedRun, name: PublishedTable) -> None:
        """Replace those rows of a table that differ from the run's; equal ones remain.

        To delete all and insert them again would take twice as long as to insert them for the first time, since the
        index has the deleted keys. It would also leave a dead row for each row of the run.
        """
        table = f"{self._schema}.{name}"
        key = "new.ordinal = old.ordinal" if "ordinal" in TABLES[name].key else "new.run = old.run"
        columns = TABLES[name].columns
        names = ", ".join(column.name for column in columns)
        # As text: `json`, to which the type of attributes may be changed, has no `=`.
        compared = [f"{column.name}{'::text' if column.type == 'attributes' else ''}" for column in columns]
        old, new = (", ".join(f"{side}.{each}" for each in compared) for side in ("old", "new"))
        # Only our columns: one that was added to the table may be NOT NULL, and its default would not be copied.
        rows = f"SELECT {names} FROM {table} WITH NO DATA"
        connection.execute(f"CREATE TEMPORARY TABLE new_rows ON COMMIT DROP AS {rows}".encode())
        self._copy(connection, run, name, "pg_temp.new_rows")
        connection.execute("ANALYZE pg_temp.new_rows")
        # Until the table is analyzed after a new run, the server expects no row of the run, and would compare each row
        # with each. Rows are in the order of their ordinals, so that to merge them takes less than to hash them. Both
        # settings hold to the end of the transaction, so for the tables that follow, too.
        for join in ("nestloop", "hashjoin"):
            connection.execute(f"SET LOCAL enable_{join} = off".encode())
        same = f"SELECT FROM pg_temp.new_rows AS new WHERE {key} AND ({new}) IS NOT DISTINCT FROM ({old})"
        connection.execute(f"DELETE FROM {table} AS old WHERE run = %s AND NOT EXISTS ({same})".encode(), [run.name])
        kept = f"SELECT FROM {table} AS old WHERE old.run = %s AND {key}"
        inserted = f"SELECT {names} FROM pg_temp.new_rows AS new WHERE NOT EXISTS ({kept})"
        connection.execute(f"INSERT INTO {table} ({names}) {inserted}".encode(), [run.name])
        connection.execute("DROP TABLE pg_temp.new_rows")

    def _copy(self, connection: "psycopg.Connection", run: PublishedRun, name: PublishedTable, table: str) -> None:
        columns = ", ".join(column.name for column in TABLES[name].columns)
        statement = f"COPY {table} ({columns}) FROM STDIN (FORMAT csv)".encode()
        with connection.cursor() as cursor, cursor.copy(statement) as copy, csv_blocks(run, name) as blocks:
            for block in blocks:
                copy.write(block)

    @contextmanager
    def _connect(self, limit: TimeLimit) -> Iterator["psycopg.Connection"]:
        """Open a connection that ends when the time is over; translate errors of PostgreSQL."""
        psycopg = _import_psycopg()
        parameters = self._parameters(limit)
        timer: _ConnectionTimer | None = None
        try:
            with (
                psycopg.Connection.connect(**parameters) as connection,
                _ConnectionTimer(connection, limit) as timer,
            ):
                yield connection
        except psycopg.Error as error:
            if (timer is not None and timer.has_ended) or limit.remaining() <= 0:  # the server's own limit may be first
                raise DestinationError(f"{self.describe()}: the time is over") from None
            reason, is_permanent = _describe_error(error)
            raise DestinationError(f"{self.describe()}: {reason}", retryable=not is_permanent) from None

    def _parameters(self, limit: TimeLimit) -> dict[str, Any]:
        """Return the arguments of a connection, its password included."""
        settings = self._settings
        seconds = limit.remaining()
        if seconds <= 0:
            raise DestinationError(f"{self.describe()}: the time is over before it is reached")
        parameters: dict[str, Any] = {
            "host": settings.host, "port": settings.port, "dbname": settings.database, "user": settings.user,
            "application_name": "auditor", "client_encoding": "utf8", "autocommit": True, "prepare_threshold": None,
            "connect_timeout": max(2, int(min(seconds, CONNECT_SECONDS))),  # libpq takes 1 for 2
        }  # fmt: skip
        if settings.password is not None:
            parameters["password"] = read_secret(settings.password, account=None, key="publish: password").reveal()
        if not settings.host.startswith("/"):
            checked = settings.ssl_mode in {"verify-ca", "verify-full"}
            parameters |= {"sslmode": settings.ssl_mode, "sslrootcert": _authorities(settings) if checked else None}
            parameters |= {"sslcert": settings.certificate_file, "sslkey": settings.key_file}
        return {name: value for name, value in parameters.items() if value is not None}


def _check_settings(settings: PostgresqlSettings) -> None:
    """Raise SettingsError for options that no database can have, or that contradict each other."""
    for name in ("host", "database", "user", "schema"):
        text = getattr(settings, name)
        if not text or not text.isprintable():
            raise SettingsError(f"{name}: is empty, or has a control character; give a name")
    if len(settings.schema.encode()) > MAX_NAME_BYTES or settings.schema.startswith("pg_"):
        raise SettingsError(f"schema: has at most {MAX_NAME_BYTES} bytes and does not start with pg_; give such a name")
    if not 0 < settings.port < 65_536:  # noqa: PLR2004  ports have 16 bits
        raise SettingsError(f"port: {settings.port} is no port; give 1 to 65535")
    if settings.ssl_mode == "verify-ca" and settings.ca_file is None:
        raise SettingsError("ssl_mode: verify-ca needs ca_file: the system's authorities sign the names of all servers")
    if (settings.certificate_file is None) != (settings.key_file is None):
        raise SettingsError("certificate_file and key_file: give both, or neither")


class _ConnectionTimer:
    """Ends a connection when the time is over, whatever the server or the network does.

    Attributes:
        has_ended: whether it ended the connection.
    """

    def __init__(self, connection: "psycopg.Connection", limit: TimeLimit) -> None:
        self.has_ended = False
        # A descriptor of its own: that of a closed connection could be another file by then.
        self._socket = socket.socket(fileno=os.dup(connection.fileno()))
        self._timer = threading.Timer(min(max(0.0, limit.remaining()), threading.TIMEOUT_MAX), self._end)
        self._timer.daemon = True

    def _end(self) -> None:
        self.has_ended = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._timer.join()
        self._socket.close()


_ADVICE = {
    "28": "",  # the role is refused
    "3F": "; run deploy/postgresql/schema.sql again",
    "42": "; the schema is not as auditor makes it: run deploy/postgresql/schema.sql again",
    "42501": "; give the role the privileges of docs/publishing-postgresql.md",
}
"""What to do about errors that no retry mends, by their SQLSTATE or its class."""


_REFUSALS = (
    "authentication failed", "does not exist", "no pg_hba.conf entry", "certificate verify failed",
    "does not match host name", "server does not support SSL",
)  # fmt: skip
"""Parts of the messages of refused connections that no retry mends; libpq gives no SQLSTATE for them."""


def _describe_error(error: "psycopg.Error") -> tuple[str, bool]:
    """Return the reason of an error, without the rows that the server quotes, and whether no retry mends it."""
    reason = safe(error.diag.message_primary or str(error).strip().partition("\n")[0])
    state = error.sqlstate
    if state is None:
        return reason, any(each in reason for each in _REFUSALS)
    advice = _ADVICE.get(state, _ADVICE.get(state[:2]))
    return (reason, False) if advice is None else (reason + advice, True)


@contextmanager
def _transaction(connection: "psycopg.Connection", limit: TimeLimit) -> Iterator[None]:
    """Open a transaction that the server ends if this client is gone, and whose statements end when the time is over.

    The settings are those of the transaction: a connection pool may give the session to another program after it.
    """
    seconds = limit.remaining()
    settings = {
        "statement_timeout": "0" if seconds > MAX_TIMEOUT_SECONDS else f"{max(1, int(1_000 * seconds))}ms",
        "idle_in_transaction_session_timeout": f"{ABANDONED_SECONDS}s",
        "tcp_keepalives_idle": f"{ABANDONED_SECONDS // 2}s",
        "tcp_keepalives_interval": "10s",
        "tcp_keepalives_count": "3",
        "timezone": "UTC",
        "datestyle": "ISO",
    }
    with connection.transaction():
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, true)", [name, value])
        yield


def _authorities(settings: PostgresqlSettings) -> str:
    """Return the file of the authorities to trust: psycopg's own libraries do not find those of the system."""
    files = (settings.ca_file, ssl.get_default_verify_paths().cafile, *_SYSTEM_AUTHORITIES)
    return next(
        (each for each in files if each is not None and (each == settings.ca_file or Path(each).is_file())), "system"
    )


def _import_psycopg() -> ModuleType:
    try:
        import psycopg
    except ImportError:
        raise UsageError(f"publishing to PostgreSQL needs psycopg: {describe_extra('postgresql')}") from None
    return psycopg


def _lock_key(*names: str) -> int:
    """Return the key of an advisory lock, a signed number of 64 bits."""
    digest = hashlib.sha256("\0".join(("auditor", *names)).encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


@contextmanager
def csv_blocks(run: PublishedRun, name: PublishedTable) -> Iterator[Iterator[bytes]]:
    """Yield the rows of a table as blocks of CSV. Texts are quoted, and NULL is not, as PostgreSQL reads it.

    Raise RunFolderError at the end of the blocks if the run cannot be read.
    """
    texts = [column.name for column in TABLES[name].columns if column.type in {"text", "attributes"}]
    options = f"FORMAT csv, HEADER false, NULLSTR '', FORCE_QUOTE ({', '.join(texts)}), USE_TMP_FILE false"
    with translate_read_errors(run.folder):
        query = _csv_query(run, name)
    reading, writing = os.pipe()
    statement = f"COPY ({query}) TO '/dev/fd/{writing}' ({options})"
    problems: list[BaseException] = []
    database = run.database.cursor()

    def write() -> None:
        try:
            database.execute(statement)
        except BaseException as error:  # noqa: BLE001  raised by the reader
            problems.append(error)
        finally:
            os.close(writing)

    def read() -> Iterator[bytes]:
        while block := os.read(reading, BLOCK_BYTES):
            yield block
        thread.join()
        for problem in problems:
            with translate_read_errors(run.folder):
                raise problem

    thread = threading.Thread(target=write, name="publish", daemon=True)
    thread.start()
    try:
        yield read()
    finally:
        os.close(reading)  # ends a writer that is not at its end
        thread.join()
        database.close()


def _csv_query(run: PublishedRun, name: PublishedTable) -> str:
    """Return the SQL of a table's rows with texts that PostgreSQL can store; attributes become JSON."""
    cells = []
    for column in TABLES[name].columns:
        match column.type:
            case "text":
                cells.append(f"replace({column.name}, chr(0), '{NUL_SYMBOL}') AS {column.name}")
            case "attributes":
                cells.append(f"{_json_object(column.name)} AS {column.name}")
            case _:
                cells.append(column.name)
    return f"SELECT {', '.join(cells)} FROM ({run.query(name)})"


def _json_object(column: str) -> str:
    """Return the SQL of a map of texts as a JSON object.

    Where a text has NUL, entries are written one by one: names may be equal then, and PostgreSQL keeps the last one.
    """
    texts = [f"to_json(replace(entry.{part}, chr(0), '{NUL_SYMBOL}'))::VARCHAR" for part in ("key", "value")]
    entries = f"list_transform(map_entries({column}), lambda entry: {texts[0]} || ':' || {texts[1]})"
    plain = f"to_json({column})::VARCHAR"
    return (
        f"CASE WHEN contains({plain}, '\\u0000') THEN '{{' || array_to_string({entries}, ',') || '}}' ELSE {plain} END"
    )
