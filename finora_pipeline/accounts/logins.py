"""Who may open the web pages: logins with argon2 passwords, and sessions that end on the server."""

import hashlib
import hmac
import logging
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection as Transaction
from sqlalchemy.exc import DBAPIError

from finora_pipeline.accounts.database import AccountsDatabase, logins, sessions
from finora_pipeline.accounts.model import AccountsError
from finora_pipeline.data_folder.disk import StorageError

_log = logging.getLogger(__name__)
SHORTEST_PASSWORD = 12
# Argon2 works on every byte; what nobody types must not keep it busy.
LONGEST_PASSWORD = 1_000
# With two passes, OWASP's second choice; the library's own would take 64 MiB a password.
ARGON2_KIB = 19_456
SESSION_IDLE = timedelta(hours=12)
SESSION_LONGEST = timedelta(days=7)
# A browser that has signed in is known again for so long, where sign-ins of strangers are slowed down.
DEVICE_KNOWN = timedelta(days=180)
# A page a second must not be a write a second.
_SEEN_EVERY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Login:
    """Somebody who may sign in: for one user's pages, or as an operator (no `user_id`) for everybody's."""

    name: str
    user_id: str | None
    has_password: bool
    created_at: datetime
    has_second_factor: bool = False

    @property
    def is_operator(self) -> bool:
        return self.user_id is None

    def may_see(self, user_id: str) -> bool:
        return self.is_operator or self.user_id == user_id


class Logins:
    """Logins and sessions in the accounts database."""

    def __init__(self, database: AccountsDatabase) -> None:
        self._database = database
        self._passwords = PasswordHash([Argon2Hasher(time_cost=2, memory_cost=ARGON2_KIB, parallelism=1)])

    @cached_property
    def _decoy(self) -> str:
        """Verified for an unknown login, so that both answers take as long."""
        return self._passwords.hash(secrets.token_urlsafe(16))

    def all(self) -> list[Login]:
        """Everybody who may sign in, by name."""
        with self._database.read() as database:
            return [_login(row) for row in database.execute(select(logins).order_by(logins.c.name))]

    def get(self, name: str) -> Login | None:
        """The login of that name, however it is spelled."""
        row = self._row(name)
        return _login(row) if row else None

    def _row(self, name: str) -> Any:
        # Postgres refuses to compare with some of the names that no login has.
        if not _is_name(name):
            return None
        with self._database.read() as database:
            return database.execute(select(logins).where(logins.c.name == _spelled(name))).first()

    def save(self, name: str, *, user_id: str | None, password: str | None) -> Login:
        """Makes a login or replaces the one of that name, whose sessions end and whose second factor stays.
        Without a password it serves the identity provider alone. Raises `AccountsError`."""
        name = _spelled(name)
        if not _is_name(name):
            raise AccountsError("A login needs a name: an e-mail address, best.")
        if password is not None and not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise AccountsError(f"Take a password of {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters.")
        row: dict[str, Any] = {
            "name": name,
            "user_id": user_id,
            "password_hash": None if password is None else self._passwords.hash(password),
            "created_at": datetime.now(UTC),
        }
        with self._database.write() as database:
            known = database.execute(select(logins).where(logins.c.name == name)).mappings().first()
            if known and password is not None:
                row |= {column: known[column] for column in known if column.startswith("totp_")}
            database.execute(delete(sessions).where(sessions.c.name == name))
            database.execute(delete(logins).where(logins.c.name == name))
            database.execute(insert(logins).values(row))
        login = self.get(name)
        assert login is not None
        return login

    def remove(self, name: str) -> None:
        """Removes a login and ends its sessions. Raises `AccountsError` if there is none."""
        with self._database.write() as database:
            database.execute(delete(sessions).where(sessions.c.name == _spelled(name)))
            if not database.execute(delete(logins).where(logins.c.name == _spelled(name))).rowcount:
                raise AccountsError(f"There is no login {name}.")

    def by_password(self, name: str, password: str) -> Login | None:
        """The login that name and password belong to."""
        if len(password) > LONGEST_PASSWORD:
            return None
        row, decoy = self._row(name), self._decoy
        known = row.password_hash if row and row.password_hash else decoy
        is_right = self._passwords.verify(password, known)
        return _login(row) if row and row.password_hash and is_right else None

    def mark_device(self, name: str, now: datetime) -> str | None:
        """What a browser keeps that has signed in by password, so that it is known again; None for a login
        without a password, whose change ends the mark."""
        row = self._row(name)
        if row is None or not row.password_hash:
            return None
        unsigned = f"{int(now.timestamp())}.{secrets.token_urlsafe(12)}"
        return f"{unsigned}.{_device_signature(row, unsigned)}"

    def device_of(self, name: str, mark: str, now: datetime) -> str | None:
        """The device that was marked for the name, or None."""
        row = self._row(name)
        unsigned, _, signature = mark.rpartition(".")
        if row is None or not row.password_hash:
            return None
        if not hmac.compare_digest(signature.encode(), _device_signature(row, unsigned).encode()):
            return None
        issued, _, device = unsigned.partition(".")
        return device if now.timestamp() - int(issued) <= DEVICE_KNOWN.total_seconds() else None

    def open_session(self, login: Login, now: datetime) -> str:
        """Begins a session; what the browser is to keep."""
        token = secrets.token_urlsafe(32)
        row = {"token_hash": _hash(token), "name": login.name, "opened_at": now, "seen_at": now}
        with self._database.write() as database:
            over = (sessions.c.opened_at < now - SESSION_LONGEST) | (sessions.c.seen_at < now - SESSION_IDLE)
            database.execute(delete(sessions).where(over))
            database.execute(insert(sessions).values(row))
        return token

    def of_session(self, token: str, now: datetime) -> Login | None:
        """Whose session it is, if it has not ended."""
        query = (
            select(logins, sessions.c.seen_at)
            .join(sessions, sessions.c.name == logins.c.name)
            .where(
                sessions.c.token_hash == _hash(token),
                sessions.c.opened_at >= now - SESSION_LONGEST,
                sessions.c.seen_at >= now - SESSION_IDLE,
            )
        )
        with self._database.read() as database:
            row = database.execute(query).first()
        if row is None:
            return None
        if now - row.seen_at >= _SEEN_EVERY:
            seen = update(sessions).where(sessions.c.token_hash == _hash(token)).values(seen_at=now)
            try:
                with self._database.write_at_once() as database:
                    database.execute(seen)
            except (DBAPIError, StorageError) as error:
                # Who is signed in is let in though that cannot be noted just now.
                _log.warning("A session could not be noted as seen: %s", getattr(error, "orig", error))
        return _login(row)

    def close_session(self, token: str) -> None:
        """Ends one session."""
        with self._database.write() as database:
            database.execute(delete(sessions).where(sessions.c.token_hash == _hash(token)))

    def close_sessions(self, name: str) -> int:
        """Ends every session of a login; how many."""
        with self._database.write() as database:
            return database.execute(delete(sessions).where(sessions.c.name == _spelled(name))).rowcount

    def forget(self, transaction: Transaction, user_id: str) -> dict[str, int]:
        """Deletes a user's logins and their sessions; returns the deleted rows by table."""
        theirs = select(logins.c.name).where(logins.c.user_id == user_id)
        transaction.execute(delete(sessions).where(sessions.c.name.in_(theirs)))
        return {logins.name: transaction.execute(delete(logins).where(logins.c.user_id == user_id)).rowcount}

    def is_configured(self) -> bool:
        """Whether anybody can sign in."""
        with self._database.read() as database:
            return bool(database.scalar(select(func.count()).select_from(logins)))


def _spelled(name: str) -> str:
    # ASCII alone: other letters fold into those of another domain's name.
    return "".join(letter.lower() if letter.isascii() else letter for letter in name.strip())


def _is_name(name: str) -> bool:
    spelled = _spelled(name)
    return 0 < len(spelled) <= 200 and spelled.isprintable()


def _hash(token: str) -> str:
    # Random enough that a slow hash would add nothing.
    return hashlib.sha256(token.encode()).hexdigest()


def _device_signature(row: Any, unsigned: str) -> str:
    # The password's hash is a secret that lasts as long as the password.
    key = hashlib.sha256(b"finora device" + row.password_hash.encode()).digest()
    return hmac.digest(key, f"{row.name} {unsigned}".encode("utf-8", "replace"), "sha256").hex()


def _login(row: Any) -> Login:
    has_second_factor = row.totp_ciphertext is not None
    return Login(row.name, row.user_id, row.password_hash is not None, row.created_at, has_second_factor)
