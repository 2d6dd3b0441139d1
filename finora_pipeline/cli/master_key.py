"""finora rotate-master-key: another master key for all stored secrets."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click
from rich.table import Table

from finora_pipeline.cli.terminal import json_option, messages, output, plain_errors, print_json, row

if TYPE_CHECKING:
    from finora_pipeline.settings import Settings


@click.command("rotate-master-key")
@click.option(
    "--list", "only_lists", is_flag=True, help="Show which master key locks which stored key; change nothing."
)
@click.option("--forget-lost", is_flag=True, help="Delete the stored keys whose master key is lost.")
@click.option("--yes", is_flag=True, help="Do not ask before keys are deleted.")
@json_option
def rotate_master_key(only_lists: bool, forget_lost: bool, yes: bool, as_json: bool) -> None:
    """Encrypt all stored keys with a new master key; users need not do anything.

    A master key in the file master.key is replaced by a new one. With FINORA_MASTER_KEY, put the new key
    before the old one, separated by a comma, restart finora up, and run this; the output names the keys that
    are no longer needed. It can be interrupted and run again at any time. Back up the accounts and the master
    key afterwards: earlier backups open only with the old key.
    """
    if only_lists and forget_lost:
        raise click.UsageError("Give --list or --forget-lost, not both.")
    from finora_pipeline.accounts import rotation
    from finora_pipeline.settings import Settings

    settings = Settings.from_environment()
    with plain_errors():
        if only_lists:
            _list(settings, as_json)
            return
        if forget_lost:
            _forget_lost(settings, yes, as_json)
            return
        done = rotation.rotate(settings)
    if as_json:
        print_json(asdict(done))
    else:
        output.print(f"{done.rewrapped} stored keys are now encrypted with master key {done.current}.")
        if done.removable:
            messages.print(f"These master keys are no longer needed: {', '.join(done.removable)}.")
        for lock in done.unreadable:
            messages.print(
                f"The key of {lock.owner} does not decrypt and was left unchanged. Save a new one with "
                f"finora update --user {lock.owner}.",
                markup=False,
            )
    if done.unreadable:
        sys.exit(1)


def _list(settings: "Settings", as_json: bool) -> None:
    from finora_pipeline.accounts.sealed import locks
    from finora_pipeline.accounts.store import accounts_of

    accounts = accounts_of(settings)
    current = accounts.vault.current_key_id
    with accounts.database.read() as database:
        found = list(locks(database))
    if as_json:
        print_json({"current": current, "keys": [asdict(lock) for lock in found]})
        return
    table = Table("Table", "Owner", "Master key")
    for lock in found:
        note = "" if lock.master_key_id == current else " (old)"
        table.add_row(*row(lock.table, lock.owner, f"{lock.master_key_id}{note}"))
    output.print(table)
    messages.print(f"The current master key is {current}.")


def _forget_lost(settings: "Settings", yes: bool, as_json: bool) -> None:
    from finora_pipeline.accounts.rotation import forget_lost

    if not yes:
        click.confirm(
            "Delete all stored keys whose master key is missing? This cannot be undone.", abort=True, err=True
        )
    lost = forget_lost(settings)
    if as_json:
        print_json({"deleted": [asdict(lock) for lock in lost]})
        return
    for lock in lost:
        what = "key" if lock.table == "credentials" else "second factor"
        output.print(f"Deleted the {what} of {lock.owner}, locked by {lock.master_key_id}.", markup=False)
    messages.print(f"{len(lost)} deleted. Save new keys with finora connect or in the dashboard.")
