"""Stored keys, decrypted one at a time when a request needs them; no other code decrypts them."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finora_pipeline.accounts.model import AccountsError, KeyReplaced
from finora_pipeline.accounts.vault import Sealed, Vault
from finora_pipeline.openai_admin.keys import AdminKey
from finora_pipeline.openai_admin.provider import PROVIDER

# How often a key ring checks that its keys are still the users' current ones.
LOOK_AGAIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True, repr=False)
class SealedKey:
    """A stored Admin key: encrypted, with its version and the address it is bound to."""

    sealed: Sealed
    version: int
    bound_to: str | None


class KeyRing:
    """Encrypted keys of some users as of a single moment.

    `current_versions` returns the users' key versions now, by user id.
    """

    def __init__(
        self,
        vault: Vault,
        sealed: Mapping[str, "SealedKey"],
        current_versions: Callable[[], Mapping[str, int]],
    ) -> None:
        self._vault = vault
        self._sealed = sealed
        self._current_versions = current_versions
        self._looked_at = -math.inf
        self._versions: Mapping[str, int] = {}

    def key_of(self, user_id: str, version: int | None = None) -> AdminKey:
        """The user's Admin key, decrypted.

        Raises `AccountsError` if no key is stored, and `VaultError`. With a version, raises `KeyReplaced`
        unless it is both the ring's and the user's current version, as of `LOOK_AGAIN_SECONDS` ago.
        """
        one = self._of(user_id)
        if version is not None and not one.version == version == self._now().get(user_id):
            raise KeyReplaced(f"The key of {user_id} has just been replaced or removed.")
        return AdminKey(self._vault.open(one.sealed, key_identity(user_id, one.version, one.bound_to)))

    def bound_to(self, user_id: str) -> str | None:
        """The only address the user's key may be sent to (`addresses.bound_form`), authenticated with it.

        None while no address is confirmed. Raises `AccountsError` if no key is stored.
        """
        return self._of(user_id).bound_to

    def _of(self, user_id: str) -> "SealedKey":
        if user_id not in self._sealed:
            raise AccountsError(f"No OpenAI key is stored for user {user_id}.")
        return self._sealed[user_id]

    def _now(self) -> Mapping[str, int]:
        if time.monotonic() - self._looked_at >= LOOK_AGAIN_SECONDS:
            self._versions, self._looked_at = self._current_versions(), time.monotonic()
        return self._versions


def identity_of(row: Any) -> str:
    """The identity that the key in a row of `credentials` was sealed for."""
    return key_identity(row.user_id, row.version, row.bound_to)


def key_identity(user_id: str, version: int, bound_to: str | None) -> str:
    """The text authenticated with a key; unique, since user ids hold no spaces."""
    identity = f"finora/{PROVIDER}/{version}/{user_id}"
    return identity if bound_to is None else f"{identity} at {bound_to}"


def sealed_key(row: Any) -> SealedKey:
    """The key in a row of `credentials`, still encrypted."""
    return SealedKey(Sealed(row.master_key_id, row.wrapped_key, row.ciphertext), row.version, row.bound_to)
