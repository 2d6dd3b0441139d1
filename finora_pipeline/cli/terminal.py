"""The terminal of all commands: consoles, domain errors as one sentence, JSON output, progress bars."""

import io
import json
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TextIO

import click
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

if TYPE_CHECKING:
    from finora_pipeline.accounts.store import Accounts
    from finora_pipeline.server.supervisor import Addresses


# Control characters, and those that change the direction of the text after them.
_UNSAFE = (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_CONTROLS = {code: "�" for code in _UNSAFE if chr(code) not in "\t\n"}
_ESCAPED = {code: f"\\u{code:04x}" for code in _UNSAFE if code >= 127}
# How often a progress bar updates the counts of a run.
PROGRESS_SECONDS = 0.5
# Lines in a pipe need not fit a terminal's width.
PIPE_WIDTH = 1_000
# Only results go to the standard output, so that a pipe gets nothing else.
output = Console(highlight=False, width=None if sys.stdout and sys.stdout.isatty() else PIPE_WIDTH)
messages = Console(stderr=True, highlight=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a script.")


def log_to_terminal() -> None:
    """Show what the project logs on the standard error output."""
    log = logging.getLogger("finora")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(
        RichHandler(console=messages, show_path=False, show_level=False, highlighter=NullHighlighter())
    )


def print_link(name: str, address: str) -> None:
    """Print an address on its own line, not wrapped. It may hold the access token, so it is never logged."""
    messages.print(f"{name}: {address}", soft_wrap=True, markup=False)


def print_addresses(addresses: "Addresses") -> None:
    """Print the addresses of a running installation, one per line."""
    print_link("Dashboard", addresses.dashboard)
    print_link("Dagster UI", addresses.dagster_ui)
    if addresses.public_dagster_ui:
        print_link("Dagster UI for others", addresses.public_dagster_ui)
    print_link("Documentation", addresses.documentation)
    print_link("Health and metrics", f"{addresses.health}, /metrics; logs: {addresses.logs}")


@contextmanager
def plain_errors() -> Iterator[None]:
    """Translate domain errors, whose messages are sentences for a person, into the command's error."""
    from finora_pipeline.accounts.model import AccountsError
    from finora_pipeline.accounts.vault import VaultError
    from finora_pipeline.data_folder.disk import StorageError
    from finora_pipeline.data_folder.private_files import ForeignFiles
    from finora_pipeline.instance.config import InstanceFileError
    from finora_pipeline.openai_admin.addresses import AddressError
    from finora_pipeline.openai_admin.errors import OpenAIAdminError
    from finora_pipeline.openai_admin.keys import KeyFormError
    from finora_pipeline.plans import UnknownPlan
    from finora_pipeline.warehouse.database import PartsUnequal
    from finora_pipeline.warehouse.schema import RebuildIncomplete, WarehouseOutdated, WarehouseTooNew

    known = (
        AccountsError,
        VaultError,
        AddressError,
        OpenAIAdminError,
        KeyFormError,
        UnknownPlan,
        WarehouseOutdated,
        WarehouseTooNew,
        RebuildIncomplete,
        PartsUnequal,
        StorageError,
        InstanceFileError,
        ForeignFiles,
    )
    try:
        yield
    except known as error:
        raise click.ClickException(str(error)) from None


def standard_input() -> TextIO:
    """The standard input as UTF-8; invalid bytes become a character no id, key or password holds."""
    if sys.stdin is None:
        return io.StringIO()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    return sys.stdin


def print_json(value: Any) -> None:
    """Print JSON on the standard output: moments and days in ISO 8601, decimals as exact text."""
    click.echo(as_json_text(value, indent=2))


def as_json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON: keys become texts, and infinite or NaN numbers null."""
    text = json.dumps(_for_json(value), indent=indent, default=plain, ensure_ascii=False, allow_nan=False)
    # Characters that JSON leaves unescaped but a terminal may interpret.
    return text.translate(_ESCAPED)


def harmless(text: str) -> str:
    """The text without characters that move a terminal's cursor or change its state."""
    return text.translate(_CONTROLS)


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {plain(key): _for_json(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def plain(value: Any) -> str:
    """A value as text for other programs: a decimal without exponent, a moment in ISO 8601."""
    if isinstance(value, Decimal):
        text = format(value, "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, bytes):
        return value.hex()
    return value.isoformat() if isinstance(value, (date, datetime)) else str(value)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int, int], None]]:
    """A progress bar on the standard error output; yields the callback `(done, total, failed)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=messages, transient=False, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None, failed="")

        def show(done: int, total: int, failed: int) -> None:
            bar.update(task, completed=done, total=total, failed=f"{failed} failed" if failed else "")

        yield show


@contextmanager
def fetch_progress(accounts: "Accounts", run_id: str, users: int) -> Iterator[None]:
    """A progress bar of a run in this process, based on the record of its refreshes."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    with progress(f"Fetching {users} users") as show:

        def watch() -> None:
            while not over.wait(PROGRESS_SECONDS):
                show(*_counts(accounts, run_id, users))

        watcher = threading.Thread(target=watch, name="progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            show(*_counts(accounts, run_id, users))


def _counts(accounts: "Accounts", run_id: str, users: int) -> tuple[int, int, int]:
    done, failed = accounts.refreshes.counts(run_id)
    return done, max(done, users), failed


def row(*cells: str) -> list[Text]:
    """Cells of a table in which brackets are not markup, and nothing moves the cursor."""
    return [Text(harmless(cell)) for cell in cells]


def moment(value: datetime | None) -> str:
    """A moment for a person: `2026-11-24 08:15` in UTC, or a dash."""
    return f"{value:%Y-%m-%d %H:%M}" if value else "–"
