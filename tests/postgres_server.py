"""A real Postgres for the tests, started from this machine's binaries."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote, unquote

import psycopg2
from psycopg2.extensions import connection as DriverConnection

# Test data need not survive a crash. The zone has summer time, which reveals code that takes a stored moment
# for local time.
OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "300",
    "timezone": "America/New_York",
}
USER = "finora"


class PostgresServer:
    """A running server with a socket in its own folder."""

    def __init__(self, folder: Path, administrator: DriverConnection) -> None:
        self.folder = folder
        self._administrator = administrator
        self._numbers = count(1)

    def new_url(self, *settings: str) -> str:
        """Return the SQLAlchemy URL of a new empty schema, created sooner than a database.

        Settings of Postgres apply to its sessions.
        """
        schema = f"test_{next(self._numbers)}"
        self.sql(f"CREATE SCHEMA {schema}")
        own = (f"search_path={schema}", f"application_name={schema}")
        options = quote(" ".join(f"-c{setting}" for setting in (*own, *settings)))
        return f"postgresql+psycopg2://{USER}@/postgres?host={quote(str(self.folder))}&options={options}"

    def sql(self, statement: str) -> list[tuple[object, ...]]:
        """Run a statement as administrator; return its rows."""
        with self._administrator.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def is_session_waiting(self) -> bool:
        """Return whether a session waits for another one's lock."""
        return bool(self.sql("SELECT 1 FROM pg_locks WHERE NOT granted"))

    def sessions(self, url: str) -> int:
        """Count the sessions of a URL without settings."""
        return len(self.sql(f"SELECT pid {self._sessions_of(url)}"))

    def left(self, url: str) -> int:
        """Count the sessions of the URL that stay; ending ones get a thousand queries' time."""
        for _ in range(1000):
            if not self.sessions(url):
                return 0
        return self.sessions(url)

    @staticmethod
    def _sessions_of(url: str) -> str:
        schema = unquote(url).rpartition("application_name=")[2]
        return f"FROM pg_stat_activity WHERE application_name = '{schema}'"

    def drop_connections(self) -> None:
        """End all sessions, as a restart of the server does."""
        self.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    def files_with(self, *secrets: bytes) -> list[str]:
        """Return the server's files, logs included, that hold one of these byte strings."""
        self.sql("CHECKPOINT")
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        assert any(path.parent.name == "pg_wal" for path in files)
        return [path.name for path in files if any(secret in path.read_bytes() for secret in secrets)]


def postgres_binaries() -> Path | None:
    """Return the folder with `initdb` and `pg_ctl`; Debian keeps it off the search path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(versions, key=lambda path: int(path.parts[-3]), default=None)
    return newest and newest.parent


@contextmanager
def running_postgres(binaries: Path) -> Iterator[PostgresServer]:
    """Serve an empty Postgres for the length of the block."""
    account = _account()
    # Not in pytest's folders, which only their owner may enter.
    with tempfile.TemporaryDirectory(prefix="finora-postgres-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        data = folder / "data"
        if account:
            os.chown(folder, account.pw_uid, account.pw_gid)

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [binaries / program, "-D", data, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                cwd=folder,
                user=account and account.pw_uid,
                group=account and account.pw_gid,
                extra_groups=[] if account else None,
            )
            assert done.returncode == 0, f"{program}: {done.stdout}"

        run("initdb", "--auth=trust", f"--username={USER}", "--no-sync", "--no-locale", "--encoding=UTF8")
        options = " ".join(f"-c {option}={value}" for option, value in OPTIONS.items())
        run("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", f"-k {folder} {options}")
        try:
            with closing(psycopg2.connect(host=name, user=USER, dbname="postgres")) as administrator:
                administrator.autocommit = True
                yield PostgresServer(folder, administrator)
        finally:
            run("pg_ctl", "stop", "-w", "-m", "immediate")


def _account() -> pwd.struct_passwd | None:
    """Return the account for the server: Postgres refuses to run as root."""
    if os.geteuid() != 0:
        return None
    known = {account.pw_name: account for account in pwd.getpwall()}
    # codespell:ignore-next-line nobody (an account of the system)
    return known.get("postgres") or known["nobody"]
