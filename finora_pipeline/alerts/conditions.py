"""The conditions of connections and of the data folder that need a person."""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from finora_pipeline.accounts.model import Connection, Status, attention_alert
from finora_pipeline.plans import PLANS, Plan
from finora_pipeline.warehouse.database import Warehouse
from finora_pipeline.warehouse.published_record import REPORTED_FOR, foreign_changes, read_record
from finora_pipeline.warehouse.raw import RawPages

USERS_NAMED = 5
PUBLISHED_CHANGED = "published/changed"
# Prefixes of the keys that `of_installation` yields.
OF_INSTALLATION = ("published/", "quarantine/", "disk/")
LEAST_FREE_BYTES = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that needs a person: `key` identifies it, `message` is a sentence or two."""

    key: str
    message: str


def of_connections(connections: Iterable[Connection], now: datetime) -> list[Condition]:
    """One condition per connection that needs attention, per expiring key and per plan with late data."""
    found: list[Condition] = []
    late: dict[str, list[Connection]] = {}
    for one in connections:
        if one.status is Status.NEEDS_ATTENTION:
            found.append(
                Condition(
                    attention_alert(one.user_id),
                    f"The OpenAI connection of {one.user_id} needs attention: {one.status_reason}",
                )
            )
        if warning := one.expiry_warning(now):
            found.append(Condition(f"key expires/{one.user_id}", f"User {one.user_id}: {warning}"))
        if one.is_late(now):
            late.setdefault(one.plan.name, []).append(one)
    return found + [_late_data(PLANS[name], users) for name, users in late.items()]


def of_installation(warehouse: Warehouse, dagster_home: Path, now: datetime) -> list[Condition]:
    """The conditions of the data folder itself, judged from its files, so that no daemon is needed."""
    return [
        *of_published(warehouse, now),
        *of_quarantine(RawPages(warehouse.raw)),
        *of_disks(warehouse, dagster_home),
    ]


def of_quarantine(raw: RawPages) -> Iterator[Condition]:
    """One condition per raw file that cannot be loaded."""
    for one in raw.quarantined():
        users = ", ".join(one.user_ids) or "unknown"
        yield Condition(
            f"quarantine/{one.file.name}",
            f"Pages of user {users} cannot be loaded and were moved to raw/quarantine/{one.file.name}. "
            f"{one.reason} The next refresh fetches them again; the alert ends when newer pages fill their "
            "days.",
        )


def of_published(warehouse: Warehouse, now: datetime) -> list[Condition]:
    """A condition while another program's change of the published files exists.

    It stays for `REPORTED_FOR` after a run has repaired the files.
    """
    record = read_record(warehouse)
    if record is None:
        return []
    changed = [] if record.is_publishing else foreign_changes(warehouse, record)
    # A run that published in between changed both the files and the record.
    if changed and read_record(warehouse) == record:
        named = ", ".join(changed[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
        message = (
            f"Another program has written to the published file: {named}. The next refresh publishes it "
            "again; open it read-only."
        )
        return [Condition(PUBLISHED_CHANGED, message)]
    repair = record.repair
    is_recent = repair and now - repair.at < REPORTED_FOR
    return [Condition(PUBLISHED_CHANGED, repair.message)] if repair and is_recent else []


def of_disks(
    warehouse: Warehouse, dagster_home: Path, least_bytes: int = LEAST_FREE_BYTES
) -> Iterator[Condition]:
    """One condition per disk with less free space than refreshes may need soon.

    That is `least_bytes`, and for the data folder at least twice the size of the published file.
    """
    database = warehouse.published_database
    published_bytes = database.stat().st_size if database.exists() else 0
    needed = {warehouse.home: max(least_bytes, 2 * published_bytes), dagster_home: least_bytes}
    disks: set[int] = set()
    for folder, least in needed.items():
        if not folder.exists() or folder.stat().st_dev in disks:
            continue
        disks.add(folder.stat().st_dev)
        free = shutil.disk_usage(folder).free
        if free < least:
            yield Condition(
                f"disk/{folder}",
                f"The disk of {folder} has only {free / 1e9:,.2f} GB free, and refreshes may need "
                f"{least / 1e9:,.2f} GB. Free some, or move the folder to a larger disk.",
            )


def _late_data(plan: Plan, late: list[Connection]) -> Condition:
    late = sorted(late, key=lambda one: (one.refreshed_at or one.connected_at, one.user_id))
    named = ", ".join(one.user_id for one in late[:USERS_NAMED])
    more = f" and {len(late) - USERS_NAMED} more" if len(late) > USERS_NAMED else ""
    oldest = late[0].refreshed_at or late[0].connected_at
    return Condition(
        f"too old/{plan.name}",
        f"Data of the {plan.name} plan is late (promised {plan.interval_text}): {named}{more}, the oldest "
        f"from {oldest:%Y-%m-%d %H:%M} UTC. Check that the daemon runs, and the last runs' logs.",
    )
