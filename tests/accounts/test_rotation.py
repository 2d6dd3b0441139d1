"""Rotation of the master key, and refusal to start with a lost or wrong one."""

import base64
import json
import os
import signal
import subprocess
import sys

import pytest
from click.testing import CliRunner
from sqlalchemy import insert, select

from finora_pipeline.accounts import rotation
from finora_pipeline.accounts.database import audit, credentials, logins, metadata
from finora_pipeline.accounts.model import AccountsError, Status
from finora_pipeline.accounts.sealed import SEALED, locks
from finora_pipeline.accounts.store import Accounts, accounts_of
from finora_pipeline.accounts.vault import KeyFile, Vault, VaultError, load_vault, totp_identity
from finora_pipeline.cli import main
from tests.conftest import Installation


@pytest.fixture
def installation(start_openai, install) -> Installation:
    """Two users with a key each, and a login with a second factor."""
    installation = install(start_openai(organizations=2, days=2))
    installation.connect()
    sealed = installation.accounts.vault.seal("a second factor", totp_identity("ops@example.com"))
    row = {"name": "ops@example.com", "created_at": installation.accounts.connections.all()[0].connected_at}
    row |= {"totp_master_key_id": sealed.master_key_id, "totp_wrapped_key": sealed.wrapped_key}
    with installation.accounts.database.write() as database:
        database.execute(insert(logins).values(row | {"totp_ciphertext": sealed.ciphertext}))
    return installation


def finora(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def text_of(*keys: bytes) -> str:
    return ",".join(base64.urlsafe_b64encode(key).decode() for key in keys)


def used_keys(accounts: Accounts) -> set[str]:
    with accounts.database.read() as database:
        return {lock.master_key_id for lock in locks(database)}


def assert_all_open(installation: Installation, accounts: Accounts | None = None) -> None:
    accounts = accounts or accounts_of(installation.settings)
    ring = accounts.connections.key_ring(["user-0", "user-1"])
    keys = [ring.key_of(user_id).reveal() for user_id in ("user-0", "user-1")]
    assert keys == [one.admin_key for one in installation.openai.organizations]
    with accounts.database.read() as database:
        row = database.execute(select(logins)).one()
    factor = SEALED[1].sealed(row)
    assert accounts.vault.open(factor, totp_identity("ops@example.com")) == "a second factor"


def test_the_key_in_the_file_is_replaced_and_opens_everything(installation):
    file = installation.settings.master_key_file
    old = file.read_text()
    before = installation.accounts.vault.current_key_id
    done = json.loads(finora("rotate-master-key", "--json").stdout)
    assert (done["rewrapped"], done["removable"], done["unreadable"]) == (3, [before], [])
    assert file.read_text() != old
    assert file.stat().st_mode & 0o777 == 0o600
    assert used_keys(installation.accounts) == {done["current"]}
    assert_all_open(installation)
    with installation.accounts.database.read() as database:
        notes = database.execute(select(audit).where(audit.c.action == "rotate master key")).all()
    assert [(note.user_id, note.detail) for note in notes] == [("*", f"{before} to {done['current']}")]
    file.write_text(old)
    with pytest.raises(VaultError, match=f"encrypted with master key {done['current']}, which is not in "):
        accounts_of(installation.settings)


def test_a_running_process_reads_and_saves_through_a_rotation(installation):
    running = installation.accounts
    ring = running.connections.key_ring(["user-0"])
    rotation.rotate(installation.settings)
    assert_all_open(installation, running)
    assert ring.key_of("user-0").reveal() == installation.openai.organizations[0].admin_key
    rotation.rotate(installation.settings)
    sealed = running.vault.seal("fresh", "identity")
    assert accounts_of(installation.settings).vault.open(sealed, "identity") == "fresh"


def test_an_interrupted_rotation_resumes_from_any_step(installation):
    file = KeyFile(installation.settings.master_key_file)
    (old,) = file.read()
    keys = rotation.add_key(file)
    assert keys[1] == old
    assert_all_open(installation)
    assert rotation.add_key(file) == keys
    rotation.rewrap_all(installation.accounts, Vault(keys, file))
    assert len(file.read()) == 2
    assert_all_open(installation)
    assert finora("rotate-master-key").exit_code == 0
    assert file.read() == keys[:1]
    assert_all_open(installation)


@pytest.mark.slow
def test_no_kill_at_any_moment_loses_a_key(installation):
    program = (
        "import sys; from finora_pipeline.accounts import rotation\n"
        "from finora_pipeline.settings import Settings\n"
        "print('ready', flush=True)\n"
        "while True: rotation.rotate(Settings.from_environment()); print('.', flush=True)\n"
    )
    for rotations in range(4):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert process.stdout
        for _ in range(1 + rotations):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert_all_open(installation)


def test_an_old_key_stays_while_an_undecryptable_secret_needs_it(installation):
    file = KeyFile(installation.settings.master_key_file)
    (old,) = file.read()
    with installation.accounts.database.write() as database:
        altered = credentials.update().where(credentials.c.user_id == "user-0")
        database.execute(altered.values(wrapped_key=bytes(60)))
    shown = finora("rotate-master-key")
    assert shown.exit_code == 1
    assert "The key of user-0 does not decrypt and was left unchanged." in shown.stderr.replace("\n", " ")
    assert file.read()[1:] == [old]


def test_keys_of_the_environment_are_moved_to_the_first(installation, monkeypatch):
    (old,) = KeyFile(installation.settings.master_key_file).read()
    installation.settings.master_key_file.unlink()
    new = os.urandom(32)
    monkeypatch.setenv("FINORA_MASTER_KEY", text_of(old))
    shown = finora("rotate-master-key")
    assert shown.exit_code == 1
    assert "holds one master key. Put a new one before it" in shown.stderr
    monkeypatch.setenv("FINORA_MASTER_KEY", text_of(new, old))
    listed = json.loads(finora("rotate-master-key", "--list", "--json").stdout)
    old_id, new_id = Vault([old]).current_key_id, Vault([new]).current_key_id
    assert listed["current"] == new_id
    assert {(one["owner"], one["master_key_id"]) for one in listed["keys"]} == {
        ("user-0", old_id), ("user-1", old_id), ("ops@example.com", old_id),
    }  # fmt: skip
    assert f"These master keys are no longer needed: {old_id}." in finora("rotate-master-key").stderr
    monkeypatch.setenv("FINORA_MASTER_KEY", text_of(new))
    assert_all_open(installation)
    assert not installation.settings.master_key_file.exists()


@pytest.mark.parametrize("command", [["status"], ["refresh"], ["rotate-master-key"], ["dashboard"], ["up"]])
def test_a_missing_master_key_stops_commands_and_is_not_replaced(installation, command):
    file = installation.settings.master_key_file
    file.unlink()
    shown = finora(*command)
    assert shown.exit_code == 1
    assert (
        f"is missing: FINORA_MASTER_KEY is not set and {file} does not exist. Restore the file"
        in shown.stderr
    )
    assert not file.exists()


def test_a_wrong_master_key_error_names_the_needed_key(installation, monkeypatch):
    needed = installation.accounts.vault.current_key_id
    monkeypatch.setenv("FINORA_MASTER_KEY", text_of(b"w" * 32))
    shown = finora("status")
    assert shown.exit_code == 1
    assert (
        f"3 stored keys are encrypted with master key {needed}, which is not in FINORA_MASTER_KEY"
        in shown.stderr
    )


def test_keys_of_a_lost_master_key_can_be_deleted(installation):
    installation.settings.master_key_file.unlink()
    assert finora("rotate-master-key", "--forget-lost").exit_code == 1
    shown = finora("rotate-master-key", "--forget-lost", "--yes", "--json")
    assert [one["owner"] for one in json.loads(shown.stdout)["deleted"]] == [
        "user-0",
        "user-1",
        "ops@example.com",
    ]
    accounts = accounts_of(installation.settings)
    assert {one.status for one in accounts.connections.all()} == {Status.REMOVED}
    assert used_keys(accounts) == set()
    with pytest.raises(AccountsError, match="No OpenAI key is stored"):
        accounts.connections.key_ring(["user-0"]).key_of("user-0")
    installation.connect(users=["user-2"])


def test_rotation_covers_every_table_with_sealed_secrets():
    columns = {
        (table.name, column.name.removesuffix("wrapped_key"))
        for table in metadata.sorted_tables
        for column in table.columns
        if column.name.endswith("wrapped_key")
    }
    assert columns == {(where.table.name, where.prefix) for where in SEALED}
    assert set(rotation.IDENTITY_OF) == {where.table.name for where in SEALED}


def test_rewrapping_keeps_the_identity_and_the_ciphertext():
    old, new = b"o" * 32, b"n" * 32
    sealed = Vault([old]).seal("secret", "identity")
    again = Vault([new, old]).rewrap(sealed, "identity")
    assert again.ciphertext == sealed.ciphertext
    assert len(again.wrapped_key) == len(sealed.wrapped_key) == 60
    assert Vault([new]).open(again, "identity") == "secret"
    with pytest.raises(VaultError, match="altered or moved"):
        Vault([new, old]).rewrap(sealed, "another")


def test_a_key_file_is_made_only_where_nothing_is_sealed(tmp_path):
    with pytest.raises(VaultError, match="is missing"):
        load_vault("FINORA_MASTER_KEY", tmp_path / "master.key", is_new=False)
    assert list(tmp_path.iterdir()) == []
