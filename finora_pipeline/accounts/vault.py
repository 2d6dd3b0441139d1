"""Encrypts users' Admin keys at rest: AES-256-GCM with a data key for each connection, wrapped by a master
key that is kept outside the database.

The identity of a connection (user, provider, version) is authenticated with it, so that a ciphertext put
into another row does not decrypt. Deleting the wrapped data key shreds the credential.
"""

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
NONCE_BYTES = 12


class VaultError(Exception):
    """The vault cannot do its work; the message says what to do and holds no secret."""


@dataclass(frozen=True, slots=True, repr=False)
class Sealed:
    """An encrypted secret as it is stored. `master_key_id` names the master key that wraps the data key."""

    master_key_id: str
    wrapped_key: bytes
    ciphertext: bytes


class Vault:
    """Seals and opens secrets with the first of its master keys; opens what any of them sealed."""

    def __init__(self, master_keys: Sequence[bytes]) -> None:
        if not master_keys or any(len(key) != KEY_BYTES for key in master_keys):
            raise VaultError(f"A master key must be {KEY_BYTES} bytes long.")
        self._master_keys = {_key_id(key): key for key in master_keys}
        self._current = _key_id(master_keys[0])

    def seal(self, secret: str, identity: str) -> Sealed:
        """Encrypts the secret for one identity."""
        data_key = AESGCM.generate_key(bit_length=KEY_BYTES * 8)
        return Sealed(
            self._current,
            _encrypt(self._master_keys[self._current], data_key, identity),
            _encrypt(data_key, secret.encode(), identity),
        )

    def open(self, sealed: Sealed, identity: str) -> str:
        """The secret. Raises `VaultError` if the master key is missing or the row is not what was sealed."""
        master_key = self._master_keys.get(sealed.master_key_id)
        if master_key is None:
            raise VaultError(
                f"The stored key was encrypted with master key {sealed.master_key_id}, which is not "
                "among the master keys given: add it to them."
            )
        try:
            data_key = _decrypt(master_key, sealed.wrapped_key, identity)
            return _decrypt(data_key, sealed.ciphertext, identity).decode()
        except (InvalidTag, ValueError):
            raise VaultError("A stored key does not decrypt: its row was altered or moved.") from None


def load_vault(variable: str, file: Path) -> Vault:
    """The vault of this installation.

    The master keys come from the environment variable (base64, several joined by commas, the current one
    first), else from the file, which is created with mode 0600 when there is none. Raises `VaultError`.
    """
    if text := os.environ.get(variable):
        return Vault(_decode(text, f"The environment variable {variable}"))
    if not file.exists():
        _create_key_file(file)
    mode = stat.S_IMODE(file.stat().st_mode)
    if mode & 0o077:
        raise VaultError(f"Others can read {file.name} (mode {mode:o}): run chmod 600 on it.")
    return Vault(_decode(file.read_text(), f"The file {file.name}"))


def _create_key_file(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as new:
        new.write(base64.urlsafe_b64encode(os.urandom(KEY_BYTES)) + b"\n")
        new.flush()
        os.fsync(new.fileno())
    try:
        # A link fails where another process was first, whose key must win.
        os.link(aside, file)
    except FileExistsError:
        pass
    finally:
        aside.unlink()


def _decode(text: str, source: str) -> list[bytes]:
    try:
        keys = [base64.urlsafe_b64decode(part.strip()) for part in text.strip().split(",")]
    except (binascii.Error, ValueError):
        keys = []
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        raise VaultError(f"{source} must hold {KEY_BYTES} random bytes in base64 (or several, with commas).")
    return keys


def _key_id(key: bytes) -> str:
    return hashlib.sha256(b"finora master key id" + key).hexdigest()[:12]


def _encrypt(key: bytes, plain: bytes, identity: str) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, identity.encode())


def _decrypt(key: bytes, sealed: bytes, identity: str) -> bytes:
    return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], identity.encode())
