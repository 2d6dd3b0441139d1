"""Settings from the environment, read once and typed.

Only secrets are read from `os.environ` elsewhere, so that nothing shows them: by the vault, the notifier,
the access token and single sign-on.
"""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finora_pipeline.openai_admin.addresses import (
    OPENAI_BASE_URL,
)

ACCOUNTS_URL = "FINORA_ACCOUNTS_URL"
ACCESS_TOKEN = "FINORA_ACCESS_TOKEN"
DOCS_URL = "FINORA_DOCS_URL"
# Names the OpenAI address of a data folder not connected to the real OpenAI, such as the demo's, so that no
# command sends its keys elsewhere by mistake.
BASE_URL_FILE = "openai_base_url"
# With less memory DuckDB cannot open a warehouse and load a page.
SMALLEST_MEMORY_LIMIT = 128_000_000
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_UNITS = {"b": 1} | {
    f"{letter}{i}b": (1024 if i else 1000) ** power
    for power, letter in enumerate("kmgt", 1)
    for i in ("", "i")
}


class SettingsError(ValueError):
    """Invalid setting; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an installation.

    `FINORA_HOME`           data folder, default `./data`
    `DAGSTER_HOME`          Dagster's own folder, default `<FINORA_HOME>/dagster`
    `OPENAI_BASE_URL`       like the official SDK's, with `/v1`; default the data folder's own, else OpenAI's
    `FINORA_ACCOUNTS_URL`   SQLAlchemy URL of the accounts database, default SQLite in the data folder
    `FINORA_MASTER_KEY`     read only by the vault; this class knows its name
    `FINORA_NOTIFY`         read only by the notifier: addresses that alerts are sent to
    `FINORA_OIDC_…`         read only by the dashboard: the identity provider
    `FINORA_ACCESS_TOKEN`   read only by finora up: opens the dashboard and Dagster's UI on this machine
    `FINORA_TRUSTED_PROXIES` addresses of proxies whose X-Forwarded-For is trusted, separated by commas
    `FINORA_PASSWORD_SIGN_IN` `off` if all logins use the identity provider
    `FINORA_ALLOWED_HOSTS`  further host names that the servers accept, separated by commas
    `FINORA_READERS_GROUP`  group of this machine that may read published files
    `FINORA_MEMORY_LIMIT`   DuckDB's memory in one process, such as 512MB; default by the machine
    `FINORA_THREADS`        DuckDB's threads in one process; default by the machine
    `FINORA_REQUESTS_AT_ONCE` requests to OpenAI in flight in one run
    `FINORA_WAIT_SECONDS`   how long to wait for a database held by another program, default 30
    `FINORA_DOCS_URL`       set by finora up: the address of the documentation
    """

    home: Path
    dagster_home: Path
    openai_base_url: str
    accounts_url: str = field(repr=False)
    # From the data folder's own file, regardless of the environment.
    folder_base_url: str | None = None
    docs_url: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[Network, ...] = ()
    password_sign_in: bool = True
    readers_group: str | None = None
    memory_limit_bytes: int | None = None
    threads: int | None = None
    requests_at_once: int | None = None
    master_key_variable: str = "FINORA_MASTER_KEY"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings. Raises `SettingsError` for an invalid one."""
        home = _folder("FINORA_HOME", environment.get("FINORA_HOME") or "data")
        dagster_home = environment.get("DAGSTER_HOME")
        folder_base_url = _own_base_url(home)
        base_url = environment.get("OPENAI_BASE_URL") or folder_base_url or OPENAI_BASE_URL
        return cls(
            home=home,
            dagster_home=_folder("DAGSTER_HOME", dagster_home) if dagster_home else home / "dagster",
            openai_base_url=base_url.strip().rstrip("/"),
            folder_base_url=folder_base_url,
            accounts_url=environment.get(ACCOUNTS_URL) or f"sqlite:///{home / 'accounts.sqlite'}",
            docs_url=environment.get(DOCS_URL),
            allowed_hosts=_names(environment.get("FINORA_ALLOWED_HOSTS", "")),
            trusted_proxies=_networks(
                "FINORA_TRUSTED_PROXIES", environment.get("FINORA_TRUSTED_PROXIES", "")
            ),
            password_sign_in=_switch(
                "FINORA_PASSWORD_SIGN_IN", environment.get("FINORA_PASSWORD_SIGN_IN", ""), default=True
            ),
            readers_group=environment.get("FINORA_READERS_GROUP") or None,
            memory_limit_bytes=_bytes("FINORA_MEMORY_LIMIT", environment.get("FINORA_MEMORY_LIMIT")),
            threads=_number("FINORA_THREADS", environment.get("FINORA_THREADS"), 256),
            requests_at_once=_number(
                "FINORA_REQUESTS_AT_ONCE", environment.get("FINORA_REQUESTS_AT_ONCE"), 4_096
            ),
        )

    @property
    def master_key_file(self) -> Path:
        """The file (mode 0600) of the master key, used if the environment has none."""
        return self.home / "master.key"

    @property
    def published_database(self) -> Path:
        """The DuckDB file that readers open."""
        return self.home / "published" / "finora.duckdb"


def wait_seconds(environment: Mapping[str, str] = os.environ) -> float:
    """How long to wait for any of our databases while another program holds it.

    Raises `SettingsError`.
    """
    text = environment.get("FINORA_WAIT_SECONDS") or "30"
    if not re.fullmatch("[0-9]{1,4}", text.strip()):
        raise SettingsError(
            f"FINORA_WAIT_SECONDS must be a whole number of seconds up to 9999, not {text!r}."
        )
    return float(text)


def _own_base_url(home: Path) -> str | None:
    """The address in the data folder's own file; None if it is missing or unreadable for this account."""
    try:
        return (home / BASE_URL_FILE).read_text().strip()
    except (FileNotFoundError, PermissionError):
        return None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def _networks(name: str, text: str) -> tuple[Network, ...]:
    """Parse addresses and networks such as 10.0.0.0/8. Raises `SettingsError`."""
    try:
        return tuple(ipaddress.ip_network(part) for part in _names(text))
    except ValueError:
        raise SettingsError(
            f"{name} must be addresses or networks such as 127.0.0.1, 10.0.0.0/8, not {text!r}."
        ) from None


def _switch(name: str, text: str, *, default: bool) -> bool:
    """Parse "on" or "off". Raises `SettingsError`."""
    known = {"on": True, "off": False, "": default}
    if text.strip().lower() not in known:
        raise SettingsError(f"{name} must be on or off, not {text!r}.")
    return known[text.strip().lower()]


def _number(name: str, text: str | None, most: int) -> int | None:
    """Parse a whole number from 1 to `most`; None for an empty setting. Raises `SettingsError`."""
    if not text or not text.strip():
        return None
    if not re.fullmatch("[0-9]{1,9}", text.strip()) or not 1 <= int(text) <= most:
        raise SettingsError(f"{name} must be a whole number from 1 to {most:,}, not {text!r}.")
    return int(text)


def _bytes(name: str, text: str | None) -> int | None:
    """Parse a size such as 512MB or 2GiB; None for an empty setting. Raises `SettingsError`."""
    if not text or not text.strip():
        return None
    found = re.fullmatch(r"([0-9]{1,12})(\.[0-9]{1,3})?\s*([kmgt]i?b|b)", text.strip().lower())
    size = int(float(found[1] + (found[2] or "")) * _UNITS[found[3]]) if found else 0
    if size < SMALLEST_MEMORY_LIMIT:
        raise SettingsError(f"{name} must be a size of at least 128MB, such as 512MB or 2GB, not {text!r}.")
    return size


def _folder(name: str, path: str) -> Path:
    """Parse a path. Raises `SettingsError` for characters that SQLAlchemy would misread in a URL."""
    folder = Path(path).expanduser().resolve()
    if odd := {"%", "?"} & set(str(folder)):
        raise SettingsError(f"{name} must be a folder without {min(odd)} in its path: {folder}.")
    return folder
