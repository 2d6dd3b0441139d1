"""Codes of an authenticator app (RFC 6238) as a second factor of logins that have a password.

The vault seals the secret. A code is accepted once, at most one step of 30 seconds early or late.
"""

import base64
import hmac
import secrets
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP
from sqlalchemy import delete, select, update

from finora_pipeline.accounts.database import AccountsDatabase, logins, sessions
from finora_pipeline.accounts.model import AccountsError
from finora_pipeline.accounts.vault import Sealed, Vault, totp_identity

STEP_SECONDS = 30
DIGITS = 6
# As long as the hash, as RFC 4226 recommends.
SECRET_BYTES = 20
# Allows for the clocks of phones and servers to differ.
STEPS_APART = 1
ISSUER = "Finora"
_OFF = {"totp_master_key_id": None, "totp_wrapped_key": None, "totp_ciphertext": None, "totp_last_step": None}


@dataclass(frozen=True, slots=True)
class Enrollment:
    """The secret for an authenticator app, in base32, and the same as an otpauth address."""

    secret: str
    address: str


class SecondFactor:
    """The second factor of each login in the accounts database."""

    def __init__(self, database: AccountsDatabase, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    def turn_on(self, name: str) -> Enrollment:
        """Create a secret for a login and end its sessions.

        Raises `AccountsError` for an unknown login and for one without a password.
        """
        secret = secrets.token_bytes(SECRET_BYTES)
        text = base64.b32encode(secret).decode()
        sealed = self._vault.seal(text, totp_identity(name))
        with self._database.write() as database:
            row = database.execute(select(logins).where(logins.c.name == name)).first()
            if row is None:
                raise AccountsError(f"No login is named {name}.")
            if row.password_hash is None:
                raise AccountsError(
                    f"{name} signs in through the identity provider. Set up the second factor there."
                )
            values = {
                "totp_master_key_id": sealed.master_key_id,
                "totp_wrapped_key": sealed.wrapped_key,
                "totp_ciphertext": sealed.ciphertext,
                "totp_last_step": None,
            }
            database.execute(update(logins).where(logins.c.name == name).values(values))
            database.execute(delete(sessions).where(sessions.c.name == name))
        return Enrollment(text, _codes(secret).get_provisioning_uri(name, ISSUER))

    def turn_off(self, name: str) -> None:
        """Delete the secret of a login. Raises `AccountsError` if it has no second factor."""
        is_on = (logins.c.name == name) & logins.c.totp_ciphertext.is_not(None)
        with self._database.write() as database:
            if not database.execute(update(logins).where(is_on).values(_OFF)).rowcount:
                raise AccountsError(f"The login {name} has no second factor.")

    def accepts(self, name: str, code: str, now: datetime) -> bool:
        """Whether the code is right and unused; a right code counts as used. Raises `VaultError`."""
        typed = "".join(code.split())
        if len(typed) != DIGITS or not typed.isascii() or not typed.isdecimal():
            return False
        # In one transaction, so that a code sent twice at the same time is accepted once.
        with self._database.write() as database:
            row = database.execute(select(logins).where(logins.c.name == name)).first()
            if row is None or row.totp_ciphertext is None:
                return False
            sealed = Sealed(row.totp_master_key_id, row.totp_wrapped_key, row.totp_ciphertext)
            codes = _codes(base64.b32decode(self._vault.open(sealed, totp_identity(name))))
            step = int(now.timestamp()) // STEP_SECONDS
            for one in range(step - STEPS_APART, step + STEPS_APART + 1):
                is_right = hmac.compare_digest(codes.generate(one * STEP_SECONDS), typed.encode())
                if is_right and (row.totp_last_step is None or one > row.totp_last_step):
                    used = update(logins).where(logins.c.name == name).values(totp_last_step=one)
                    database.execute(used)
                    return True
        return False


def _codes(secret: bytes) -> TOTP:
    return TOTP(secret, DIGITS, SHA1(), STEP_SECONDS)
