"""What the environment may set, read once and typed. Nothing else in the project reads `os.environ`, except
those who keep a secret out of all that is shown: the vault, the notifier and the single sign-on."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ACCOUNTS_URL = "FINORA_ACCOUNTS_URL"
DOCS_URL = "FINORA_DOCS_URL"
OPENAI_BASE_URL = "https://api.openai.com/v1"
# A data folder that is connected to another OpenAI than the real one, as the demo's is, says so in this
# file: no command may by mistake send its keys elsewhere.
BASE_URL_FILE = "openai_base_url"


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
    `FINORA_DOCS_URL`       set by finora up: where the UI finds the documentation
    """

    home: Path
    dagster_home: Path
    openai_base_url: str
    accounts_url: str = field(repr=False)
    has_own_accounts: bool = False
    docs_url: str | None = None
    master_key_variable: str = "FINORA_MASTER_KEY"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Raises `SettingsError` for what no command could work with."""
        home = _folder("FINORA_HOME", environment.get("FINORA_HOME") or "data")
        dagster_home = environment.get("DAGSTER_HOME")
        own_base_url = home / BASE_URL_FILE
        base_url = environment.get("OPENAI_BASE_URL") or (
            own_base_url.read_text().strip() if own_base_url.exists() else OPENAI_BASE_URL
        )
        return cls(
            home=home,
            dagster_home=_folder("DAGSTER_HOME", dagster_home) if dagster_home else home / "dagster",
            openai_base_url=_checked(base_url),
            accounts_url=environment.get(ACCOUNTS_URL) or f"sqlite:///{home / 'accounts.sqlite'}",
            has_own_accounts=bool(environment.get(ACCOUNTS_URL)),
            docs_url=environment.get(DOCS_URL),
        )

    @property
    def master_key_file(self) -> Path:
        """The 0600 file that holds the master key where the environment does not."""
        return self.home / "master.key"

    @property
    def published_database(self) -> Path:
        """The DuckDB file that readers open."""
        return self.home / "published" / "finora.duckdb"


def _checked(base_url: str) -> str:
    """The address of an API without its last slash. Raises `SettingsError`."""
    address = base_url.strip().rstrip("/")
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or " " in address:
        raise SettingsError(f"OPENAI_BASE_URL must be an address like {OPENAI_BASE_URL}.")
    return address


def _folder(name: str, path: str) -> Path:
    """Raises `SettingsError` for one in which SQLAlchemy, here and in Dagster, would see a part of a URL."""
    folder = Path(path).expanduser().resolve()
    if odd := {"%", "?"} & set(str(folder)):
        raise SettingsError(f"{name} must be a folder without {min(odd)} in its path: {folder}.")
    return folder
