"""Logins of the dashboard with argon2 passwords, and sessions that end on the server."""

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
# Argon2 works on every byte: very long inputs would keep it busy.
LONGEST_PASSWORD = 1_000
# With two passes, OWASP's second choice; the library's default takes 64 MiB per password.
ARGON2_KIB = 19_456
SESSION_IDLE = timedelta(hours=12)
SESSION_LONGEST = timedelta(days=7)
# A browser that signed in is exempt for this long from the throttle of unknown browsers.
DEVICE_KNOWN = timedelta(days=180)
# Limits writes: one page per second must not cause one write per second.
_SEEN_EVERY = timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Login:
    """A login for one user's pages, or without `user_id` an operator's, for all users' pages."""

    name: str
    user_id: str | None
    has_password: bool
    created_at: datetime
    has_second_factor: bool = False

    @property
    def is_operator(self) -> bool:
        """Whether the login sees every user's pages."""
        return self.user_id is None

    def may_see(self, user_id: str) -> bool:
        """Whether the login sees this user's pages."""
        return self.is_operator or self.user_id == user_id


class Logins:
    """Logins and sessions in the accounts database."""

    def __init__(self, database: AccountsDatabase) -> None:
        self._database = database
        self._passwords = PasswordHash([Argon2Hasher(time_cost=2, memory_cost=ARGON2_KIB, parallelism=1)])

    @cached_property
    def _decoy(self) -> str:
        """A hash verified for unknown logins, so that known and unknown names take equally long."""
        return self._passwords.hash(secrets.token_urlsafe(16))

    def all(self) -> list[Login]:
        """All logins, by name."""
        with self._database.read() as database:
            return [_login(row) for row in database.execute(select(logins).order_by(logins.c.name))]

    def get(self, name: str) -> Login | None:
        """The login of that name, ignoring case and surrounding spaces, or None."""
        row = self._row(name)
        return _login(row) if row else None

    def _row(self, name: str) -> Any:
        # Postgres refuses to compare some texts, such as those with NUL; no login has such a name.
        if not _is_name(name):
            return None
        with self._database.read() as database:
            return database.execute(select(logins).where(logins.c.name == _spelled(name))).first()

    def save(self, name: str, *, user_id: str | None, password: str | None) -> Login:
        """Create a login or replace the one of that name: its sessions end, its second factor stays.

        Without a password it only signs in through the identity provider. Raises `AccountsError`.
        """
        name = _spelled(name)
        if not _is_name(name):
            raise AccountsError("A login needs a name, preferably an e-mail address.")
        if password is not None and not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise AccountsError(f"Use a password of {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters.")
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
        """Remove a login and end its sessions. Raises `AccountsError` if it does not exist."""
        with self._database.write() as database:
            database.execute(delete(sessions).where(sessions.c.name == _spelled(name)))
            if not database.execute(delete(logins).where(logins.c.name == _spelled(name))).rowcount:
                raise AccountsError(f"No login is named {name}.")

    def by_password(self, name: str, password: str) -> Login | None:
        """The login with this name and password, or None."""
        if len(password) > LONGEST_PASSWORD:
            return None
        row, decoy = self._row(name), self._decoy
        known = row.password_hash if row and row.password_hash else decoy
        is_right = self._passwords.verify(password, known)
        return _login(row) if row and row.password_hash and is_right else None

    def mark_device(self, name: str, now: datetime) -> str | None:
        """A token for a browser that signed in by password, with which it is recognized later.

        A change of the password invalidates it. None for a login without a password.
        """
        row = self._row(name)
        if row is None or not row.password_hash:
            return None
        unsigned = f"{int(now.timestamp())}.{secrets.token_urlsafe(12)}"
        return f"{unsigned}.{_device_signature(row, unsigned)}"

    def device_of(self, name: str, mark: str, now: datetime) -> str | None:
        """The device id in a valid mark for this name, or None."""
        row = self._row(name)
        unsigned, _, signature = mark.rpartition(".")
        if row is None or not row.password_hash:
            return None
        if not hmac.compare_digest(signature.encode(), _device_signature(row, unsigned).encode()):
            return None
        issued, _, device = unsigned.partition(".")
        return device if now.timestamp() - int(issued) <= DEVICE_KNOWN.total_seconds() else None

    def open_session(self, login: Login, now: datetime) -> str:
        """Begin a session; return the token for the browser's cookie."""
        token = secrets.token_urlsafe(32)
        row = {"token_hash": _hash(token), "name": login.name, "opened_at": now, "seen_at": now}
        with self._database.write() as database:
            over = (sessions.c.opened_at < now - SESSION_LONGEST) | (sessions.c.seen_at < now - SESSION_IDLE)
            database.execute(delete(sessions).where(over))
            database.execute(insert(sessions).values(row))
        return token

    def of_session(self, token: str, now: datetime) -> Login | None:
        """The login of an open session, or None if it ended."""
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
                # An open session stays valid although its last use cannot be written just now.
                _log.warning("The last use of a session was not written: %s", getattr(error, "orig", error))
        return _login(row)

    def close_session(self, token: str) -> None:
        """End one session."""
        with self._database.write() as database:
            database.execute(delete(sessions).where(sessions.c.token_hash == _hash(token)))

    def close_sessions(self, name: str) -> int:
        """End every session of a login; return how many ended."""
        with self._database.write() as database:
            return database.execute(delete(sessions).where(sessions.c.name == _spelled(name))).rowcount

    def purge(self, transaction: Transaction, user_id: str) -> dict[str, int]:
        """Delete a user's logins and their sessions; return the number of logins deleted, by table."""
        theirs = select(logins.c.name).where(logins.c.user_id == user_id)
        transaction.execute(delete(sessions).where(sessions.c.name.in_(theirs)))
        return {logins.name: transaction.execute(delete(logins).where(logins.c.user_id == user_id)).rowcount}

    def is_configured(self) -> bool:
        """Whether any login exists."""
        with self._database.read() as database:
            return bool(database.scalar(select(func.count()).select_from(logins)))


def _spelled(name: str) -> str:
    # ASCII only: folding other letters could yield the name of another domain.
    return "".join(letter.lower() if letter.isascii() else letter for letter in name.strip())


def _is_name(name: str) -> bool:
    spelled = _spelled(name)
    return 0 < len(spelled) <= 200 and spelled.isprintable()


def _hash(token: str) -> str:
    # Tokens are random, so a slow hash would add nothing.
    return hashlib.sha256(token.encode()).hexdigest()


def _device_signature(row: Any, unsigned: str) -> str:
    # The password's hash serves as a secret that lasts as long as the password.
    key = hashlib.sha256(b"finora device" + row.password_hash.encode()).digest()
    return hmac.digest(key, f"{row.name} {unsigned}".encode("utf-8", "replace"), "sha256").hex()


def _login(row: Any) -> Login:
    has_second_factor = row.totp_ciphertext is not None
    return Login(row.name, row.user_id, row.password_hash is not None, row.created_at, has_second_factor)
