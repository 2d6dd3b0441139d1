"""Encryption of secrets at rest: AES-256-GCM with one data key per secret, wrapped by a master key.

Master keys are kept outside the database. The identity of a secret (for a key: user, provider, version and
address) is authenticated with it, so a ciphertext moved to another row does not decrypt. Deleting the
wrapped data key makes the secret unreadable.
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
    """The vault cannot seal or open a secret; the message says what to do and holds no secret."""


@dataclass(frozen=True, slots=True, repr=False)
class Sealed:
    """An encrypted secret as stored. `master_key_id` names the master key that wraps the data key."""

    master_key_id: str
    wrapped_key: bytes
    ciphertext: bytes


class Vault:
    """Seals secrets with the first of its master keys; opens secrets sealed with any of them."""

    def __init__(self, master_keys: Sequence[bytes], file: "KeyFile | None" = None) -> None:
        if not master_keys or any(len(key) != KEY_BYTES for key in master_keys):
            raise VaultError(f"A master key must be {KEY_BYTES} bytes long.")
        self._master_keys = {_key_id(key): key for key in master_keys}
        self._current = _key_id(master_keys[0])
        self._file = file

    @property
    def current_key_id(self) -> str:
        """The id of the master key that seals."""
        return self._current

    @property
    def key_ids(self) -> list[str]:
        """The ids of the master keys that open, the current one first."""
        return [self._current, *(one for one in self._master_keys if one != self._current)]

    def seal(self, secret: str, identity: str) -> Sealed:
        """Encrypt the secret for one identity, with the current master key.

        Within a writing transaction of the accounts that is also the key a finished rotation left.
        """
        self._reload()
        data_key = AESGCM.generate_key(bit_length=KEY_BYTES * 8)
        return Sealed(
            self._current,
            _encrypt(self._master_keys[self._current], data_key, identity),
            _encrypt(data_key, secret.encode(), identity),
        )

    def open(self, sealed: Sealed, identity: str) -> str:
        """Decrypt the secret. Raises `VaultError` if the master key is missing or the row was altered."""
        try:
            return _decrypt(self._data_key(sealed, identity), sealed.ciphertext, identity).decode()
        except (InvalidTag, ValueError):
            raise VaultError("A stored key does not decrypt: its row was altered or moved.") from None

    def rewrap(self, sealed: Sealed, identity: str) -> Sealed:
        """Wrap the data key with the current master key instead. Raises what `open` raises."""
        data_key = self._data_key(sealed, identity)
        wrapped_key = _encrypt(self._master_keys[self._current], data_key, identity)
        return Sealed(self._current, wrapped_key, sealed.ciphertext)

    def _data_key(self, sealed: Sealed, identity: str) -> bytes:
        if sealed.master_key_id not in self._master_keys:
            self._reload()
        master_key = self._master_keys.get(sealed.master_key_id)
        if master_key is None:
            raise VaultError(
                f"The stored key was encrypted with master key {sealed.master_key_id}, which is missing. Add "
                "it to the master keys."
            )
        try:
            return _decrypt(master_key, sealed.wrapped_key, identity)
        except (InvalidTag, ValueError):
            raise VaultError("A stored key does not decrypt: its row was altered or moved.") from None

    def _reload(self) -> None:
        """Load keys that another process has rotated; keys that left the file still open secrets."""
        if self._file is None or not self._file.has_changed():
            return
        keys = {_key_id(key): key for key in self._file.read()}
        self._current = next(iter(keys))
        self._master_keys = keys | self._master_keys


class KeyFile:
    """The file of master keys: base64, separated by commas, the current one first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None

    def exists(self) -> bool:
        return self.path.exists()

    def has_changed(self) -> bool:
        """Whether the file changed since it was last read; False while it is missing."""
        return self.path.exists() and self._version() != self._seen

    def read(self) -> list[bytes]:
        """Read the keys. Raises `VaultError` for a file that others can read or that holds no valid keys."""
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if mode & 0o077:
            raise VaultError(f"Others can read {self.path.name} (mode {mode:o}): run chmod 600 on it.")
        version = self._version()
        keys = _decode(self.path.read_text(), f"The file {self.path.name}")
        self._seen = version
        return keys

    def create(self) -> None:
        """Create the file with a new key, unless another process creates it at the same time."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._write_temporary([new_key()])
        try:
            # A link fails if another process was first; that key must win.
            os.link(temporary, self.path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()

    def replace(self, keys: Sequence[bytes]) -> None:
        """Replace the keys in the file atomically, also across a power failure."""
        temporary = self._write_temporary(keys)
        temporary.rename(self.path)
        descriptor = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _write_temporary(self, keys: Sequence[bytes]) -> Path:
        path = self.path.with_name(f"{self.path.name}.{secrets.token_hex(8)}")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as new:
            new.write(b",".join(base64.urlsafe_b64encode(key) for key in keys) + b"\n")
            new.flush()
            os.fsync(new.fileno())
        return path

    def _version(self) -> tuple[int, int]:
        about = self.path.stat()
        return about.st_ino, about.st_mtime_ns


def new_key() -> bytes:
    """A random master key."""
    return os.urandom(KEY_BYTES)


def totp_identity(name: str) -> str:
    """The identity under which the secret of a login's second factor is sealed."""
    return f"finora/totp/{name}"


def load_vault(variable: str, file: Path, *, is_new: bool = True) -> Vault:
    """Load the vault of this installation.

    Master keys come from the environment variable (base64, separated by commas, the current one first), else
    from the file. With `is_new` (nothing is sealed yet) a missing file is created with mode 0600. Raises
    `VaultError`.
    """
    if text := os.environ.get(variable):
        return Vault(_decode(text, f"The environment variable {variable}"))
    key_file = KeyFile(file)
    if not key_file.exists():
        if not is_new:
            raise VaultError(
                f"The master key of stored keys is missing: {variable} is not set and {file} does not exist. "
                f"Restore the file from your backup or set {variable}; if it is lost, "
                "finora rotate-master-key --forget-lost deletes what it locks."
            )
        key_file.create()
    return Vault(key_file.read(), key_file)


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
