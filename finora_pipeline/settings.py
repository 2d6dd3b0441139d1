"""What the environment may set, read once and typed. Nothing else in the project reads `os.environ`, except
those who keep a secret out of all that is shown: the vault, the notifier and the single sign-on."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finora_pipeline.openai_admin.addresses import (
    OPENAI_BASE_URL,
    AddressError,
    BaseAddress,
    parse_address,
)

ACCOUNTS_URL = "FINORA_ACCOUNTS_URL"
ACCESS_TOKEN = "FINORA_ACCESS_TOKEN"
DOCS_URL = "FINORA_DOCS_URL"
# A data folder that is connected to another OpenAI than the real one, as the demo's is, says so in this
# file: no command may by mistake send its keys elsewhere.
BASE_URL_FILE = "openai_base_url"
# DuckDB cannot open a warehouse and load a page with less.
SMALLEST_MEMORY_LIMIT = 128_000_000
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_UNITS = {"b": 1} | {
    f"{letter}{i}b": (1024 if i else 1000) ** power
    for power, letter in enumerate("kmgt", 1)
    for i in ("", "i")
}


class SettingsError(ValueError):
    """A setting that cannot be meant; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the data lies and which OpenAI it comes from.

    `FINORA_HOME`           data folder, default `./data`
    `DAGSTER_HOME`          Dagster's own folder, default `<FINORA_HOME>/dagster`
    `OPENAI_BASE_URL`       as the official SDK's, with its `/v1`; default the data folder's own, else OpenAI
    `FINORA_ACCOUNTS_URL`   SQLAlchemy URL of the accounts database, default SQLite in the data folder
    `FINORA_MASTER_KEY`     read by the vault alone; only its name is known here
    `FINORA_NOTIFY`         read by the notifier alone: whom alarms are sent to
    `FINORA_OIDC_…`         read by the dashboard alone: the identity provider
    `FINORA_ACCESS_TOKEN`   read by finora up alone: opens the pages and Dagster's UI on this machine
    `FINORA_TRUSTED_PROXIES` addresses of proxies whose X-Forwarded-For is believed, separated by commas
    `FINORA_PASSWORD_SIGN_IN` `off` where people sign in through the identity provider alone
    `FINORA_ALLOWED_HOSTS`  further host names under which the servers answer, separated by commas
    `FINORA_READERS_GROUP`  group of this machine that may read what is published
    `FINORA_MEMORY_LIMIT`   DuckDB's memory in one process, such as 512MB; default by the machine
    `FINORA_THREADS`        DuckDB's threads in one process; default by the machine
    `FINORA_REQUESTS_AT_ONCE` requests to OpenAI in flight in one run
    `FINORA_WAIT_SECONDS`   how long a database is waited for that another program holds, default 30
    `FINORA_DOCS_URL`       set by finora up: where the UI finds the documentation
    """

    home: Path
    dagster_home: Path
    openai_base_url: str
    accounts_url: str = field(repr=False)
    # What the data folder's own file says, whatever the environment does.
    folder_base_url: str | None = None
    has_own_accounts: bool = False
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
        """Raises `SettingsError` for what no command could work with."""
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
            has_own_accounts=bool(environment.get(ACCOUNTS_URL)),
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
    def openai_address(self) -> BaseAddress:
        """Where OpenAI is, for keys that are bound to no other address. Raises `SettingsError`."""
        try:
            return parse_address(self.openai_base_url)
        except AddressError as error:
            raise SettingsError(f"OPENAI_BASE_URL cannot be used. {error}") from None

    @property
    def master_key_file(self) -> Path:
        """The 0600 file that holds the master key where the environment does not."""
        return self.home / "master.key"

    @property
    def published_database(self) -> Path:
        """The DuckDB file that readers open."""
        return self.home / "published" / "finora.duckdb"


def wait_seconds(environment: Mapping[str, str] = os.environ) -> float:
    """How long every database of this project is waited for while another program holds it."""
    text = environment.get("FINORA_WAIT_SECONDS") or "30"
    if not re.fullmatch("[0-9]{1,4}", text.strip()):
        raise SettingsError(
            f"FINORA_WAIT_SECONDS must be a whole number of seconds up to 9999, not {text!r}."
        )
    return float(text)


def _own_base_url(home: Path) -> str | None:
    """What the data folder's own file says; None where it is missing or closed to this account."""
    try:
        return (home / BASE_URL_FILE).read_text().strip()
    except (FileNotFoundError, PermissionError):
        return None


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def _networks(name: str, text: str) -> tuple[Network, ...]:
    """Addresses and networks such as 10.0.0.0/8. Raises `SettingsError`."""
    try:
        return tuple(ipaddress.ip_network(part) for part in _names(text))
    except ValueError:
        raise SettingsError(
            f"{name} must be addresses or networks such as 127.0.0.1, 10.0.0.0/8, not {text!r}."
        ) from None


def _switch(name: str, text: str, *, default: bool) -> bool:
    """On or off. Raises `SettingsError`."""
    known = {"on": True, "off": False, "": default}
    if text.strip().lower() not in known:
        raise SettingsError(f"{name} must be on or off, not {text!r}.")
    return known[text.strip().lower()]


def _number(name: str, text: str | None, most: int) -> int | None:
    """A whole number from 1 to `most`, or None for an empty setting. Raises `SettingsError`."""
    if not text or not text.strip():
        return None
    if not re.fullmatch("[0-9]{1,9}", text.strip()) or not 1 <= int(text) <= most:
        raise SettingsError(f"{name} must be a whole number from 1 to {most:,}, not {text!r}.")
    return int(text)


def _bytes(name: str, text: str | None) -> int | None:
    """A size such as 512MB or 2GiB in bytes, or None for an empty setting. Raises `SettingsError`."""
    if not text or not text.strip():
        return None
    found = re.fullmatch(r"([0-9]{1,12})(\.[0-9]{1,3})?\s*([kmgt]i?b|b)", text.strip().lower())
    size = int(float(found[1] + (found[2] or "")) * _UNITS[found[3]]) if found else 0
    if size < SMALLEST_MEMORY_LIMIT:
        raise SettingsError(f"{name} must be a size of at least 128MB, such as 512MB or 2GB, not {text!r}.")
    return size


def _folder(name: str, path: str) -> Path:
    """Raises `SettingsError` for one in which SQLAlchemy, here and in Dagster, would see a part of a URL."""
    folder = Path(path).expanduser().resolve()
    if odd := {"%", "?"} & set(str(folder)):
        raise SettingsError(f"{name} must be a folder without {min(odd)} in its path: {folder}.")
    return folder
