"""The vault: only the right master key and identity open a secret."""

import base64
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finora_pipeline.accounts.vault import Sealed, Vault, VaultError, load_vault

VARIABLE = "FINORA_MASTER_KEY"
OLD, NEW = b"o" * 32, b"n" * 32
SECRET = "sk-admin-a-secret-for-tests-only"
IDENTITY = "finora/openai/1/acme"

# Waits for a line, so that two of these reach the missing file at the same time.
SEAL_IN_ANOTHER_PROCESS = """
import json, sys
from pathlib import Path
from finora_pipeline.accounts.vault import load_vault
print("ready", flush=True)
sys.stdin.readline()
sealed = load_vault("FINORA_MASTER_KEY", Path(sys.argv[1])).seal("secret", "identity")
print(json.dumps([sealed.master_key_id, sealed.wrapped_key.hex(), sealed.ciphertext.hex()]))
"""


def in_base64(*keys: bytes) -> str:
    return ",".join(base64.urlsafe_b64encode(key).decode() for key in keys)


def assert_silent(error: BaseException, *keys: bytes) -> None:
    """The error's message holds neither the secret nor a master key in any of its forms."""
    for key in keys:
        forms = (key.decode("latin-1"), key.hex(), repr(key), in_base64(key).rstrip("="))
        assert not any(form in str(error) for form in forms)
    assert SECRET not in str(error)


@given(secret=st.text(), identity=st.text(), master_key=st.binary(min_size=32, max_size=32))
def test_a_vault_opens_what_it_sealed(secret: str, identity: str, master_key: bytes):
    vault = Vault([master_key])
    sealed = vault.seal(secret, identity)
    assert vault.open(sealed, identity) == secret


@given(identity=st.text(), other=st.text())
def test_a_secret_opens_for_its_own_identity_only(identity: str, other: str):
    vault = Vault([OLD])
    sealed = vault.seal(SECRET, identity)
    if identity == other:
        assert vault.open(sealed, other) == SECRET
    else:
        with pytest.raises(VaultError, match="altered or moved"):
            vault.open(sealed, other)


@pytest.mark.parametrize("other", ["finora/openai/1/globex", "finora/openai/2/acme"])
def test_a_ciphertext_moved_to_another_user_or_version_does_not_open(other):
    vault = Vault([OLD])
    sealed = vault.seal(SECRET, IDENTITY)
    with pytest.raises(VaultError, match="altered or moved") as caught:
        vault.open(sealed, other)
    assert_silent(caught.value, OLD)


@given(data=st.data(), part=st.sampled_from(["wrapped_key", "ciphertext"]))
def test_one_altered_bit_anywhere_prevents_opening(data: st.DataObject, part: str):
    vault = Vault([OLD])
    sealed = vault.seal(SECRET, IDENTITY)
    altered = bytearray(getattr(sealed, part))
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(VaultError, match="altered or moved"):
        vault.open(replace(sealed, **{part: bytes(altered)}), IDENTITY)


@pytest.mark.parametrize("part", ["wrapped_key", "ciphertext"])
@pytest.mark.parametrize("length", [12, 20, 30])
def test_a_cut_secret_does_not_open(part, length):
    vault = Vault([OLD])
    sealed = vault.seal(SECRET, IDENTITY)
    cut = replace(sealed, **{part: getattr(sealed, part)[:length]})
    with pytest.raises(VaultError, match="altered or moved"):
        vault.open(cut, IDENTITY)


@pytest.mark.parametrize("part", ["wrapped_key", "ciphertext"])
def test_an_emptied_secret_does_not_open(part):
    vault = Vault([OLD])
    emptied = replace(vault.seal(SECRET, IDENTITY), **{part: b""})
    with pytest.raises(VaultError, match="altered or moved"):
        vault.open(emptied, IDENTITY)


def test_the_same_secret_is_never_sealed_to_the_same_bytes():
    vault = Vault([OLD])
    first, second = vault.seal(SECRET, IDENTITY), vault.seal(SECRET, IDENTITY)
    assert first.ciphertext != second.ciphertext
    assert first.wrapped_key != second.wrapped_key


def test_data_keys_of_two_secrets_cannot_be_swapped():
    vault = Vault([OLD])
    first, second = vault.seal(SECRET, IDENTITY), vault.seal("another", IDENTITY)
    with pytest.raises(VaultError, match="altered or moved"):
        vault.open(replace(first, wrapped_key=second.wrapped_key), IDENTITY)


def test_after_a_rotation_the_old_master_key_opens_and_the_new_one_seals():
    before = Vault([OLD]).seal(SECRET, IDENTITY)
    rotated = Vault([NEW, OLD])
    assert rotated.open(before, IDENTITY) == SECRET
    after = rotated.seal(SECRET, IDENTITY)
    assert after.master_key_id != before.master_key_id
    assert Vault([NEW]).open(after, IDENTITY) == SECRET


def test_a_missing_master_key_is_named_by_its_id():
    sealed = Vault([OLD]).seal(SECRET, IDENTITY)
    with pytest.raises(VaultError, match="which is missing") as caught:
        Vault([NEW]).open(sealed, IDENTITY)
    assert sealed.master_key_id in str(caught.value)
    assert_silent(caught.value, OLD, NEW)


@pytest.mark.parametrize("keys", [[], [b"short"], [OLD, b"x" * 31]])
def test_master_keys_are_32_bytes_long(keys):
    with pytest.raises(VaultError, match="32 bytes") as caught:
        Vault(keys)
    assert_silent(caught.value, *keys)


def test_neither_a_vault_nor_a_sealed_secret_shows_what_it_holds():
    vault = Vault([OLD])
    sealed = vault.seal(SECRET, IDENTITY)
    shown = f"{vault!r} {vault} {sealed!r} {sealed}"
    assert in_base64(OLD) not in shown
    assert repr(OLD) not in shown
    assert repr(sealed.ciphertext) not in shown


def test_the_environment_variable_holds_the_master_keys_current_one_first(monkeypatch, tmp_path):
    file = tmp_path / "master.key"
    monkeypatch.setenv(VARIABLE, f" {in_base64(NEW)} , {in_base64(OLD)}\n")
    vault = load_vault(VARIABLE, file)
    assert vault.open(Vault([OLD]).seal(SECRET, IDENTITY), IDENTITY) == SECRET
    assert Vault([NEW]).open(vault.seal(SECRET, IDENTITY), IDENTITY) == SECRET
    assert not file.exists()


def test_the_standard_base64_alphabet_is_understood_too(monkeypatch, tmp_path):
    key = b"\xfb\xef" * 16
    monkeypatch.setenv(VARIABLE, base64.b64encode(key).decode())
    vault = load_vault(VARIABLE, tmp_path / "master.key")
    assert Vault([key]).open(vault.seal(SECRET, IDENTITY), IDENTITY) == SECRET


@pytest.mark.parametrize(
    "text", [in_base64(b"x" * 31), in_base64(OLD, b"y" * 16), in_base64(OLD)[:-3], "not base64!", ",", "   "]
)
def test_the_error_of_a_bad_variable_holds_its_name_but_no_value(monkeypatch, tmp_path, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(VaultError, match=f"{VARIABLE} must hold 32 random bytes in base64") as caught:
        load_vault(VARIABLE, tmp_path / "master.key")
    assert_silent(caught.value, OLD, b"x" * 31, b"y" * 16)
    assert caught.value.__cause__ is None
    assert not (tmp_path / "master.key").exists()


def test_without_the_variable_an_owner_only_file_is_created(tmp_path):
    file = tmp_path / "new" / "folder" / "master.key"
    sealed = load_vault(VARIABLE, file).seal(SECRET, IDENTITY)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["master.key"]
    assert load_vault(VARIABLE, file).open(sealed, IDENTITY) == SECRET


def test_two_files_hold_two_keys(tmp_path):
    sealed = load_vault(VARIABLE, tmp_path / "one.key").seal(SECRET, IDENTITY)
    with pytest.raises(VaultError, match="which is missing"):
        load_vault(VARIABLE, tmp_path / "two.key").open(sealed, IDENTITY)


def test_the_file_may_hold_several_keys_as_well(tmp_path):
    file = tmp_path / "master.key"
    file.touch(0o600)
    file.write_text(in_base64(NEW, OLD) + "\n")
    assert load_vault(VARIABLE, file).open(Vault([OLD]).seal(SECRET, IDENTITY), IDENTITY) == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o777])
def test_a_file_that_others_can_open_is_refused(tmp_path, mode):
    file = tmp_path / "master.key"
    load_vault(VARIABLE, file)
    file.chmod(mode)
    with pytest.raises(VaultError, match=rf"master\.key \(mode {mode:o}\): run chmod 600") as caught:
        load_vault(VARIABLE, file)
    assert_silent(caught.value, file.read_bytes().strip())


@pytest.mark.parametrize("text", ["", "not base64!", in_base64(b"x" * 33)])
def test_the_error_of_a_bad_file_holds_its_name_but_no_content(tmp_path, text):
    file = tmp_path / "master.key"
    file.touch(0o600)
    file.write_text(text)
    with pytest.raises(VaultError, match=r"The file master\.key must hold 32 random bytes") as caught:
        load_vault(VARIABLE, file)
    assert_silent(caught.value, b"x" * 33)


def test_two_processes_that_make_the_file_at_once_agree_on_the_key(tmp_path):
    file = tmp_path / "master.key"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SEAL_IN_ANOTHER_PROCESS, str(file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    answers = [process.communicate("go\n")[0] for process in processes]
    vault = load_vault(VARIABLE, file)
    for answer in answers:
        master_key_id, wrapped_key, ciphertext = json.loads(answer)
        sealed = Sealed(master_key_id, bytes.fromhex(wrapped_key), bytes.fromhex(ciphertext))
        assert vault.open(sealed, "identity") == "secret"
    assert [path.name for path in tmp_path.iterdir()] == ["master.key"]


def test_temporary_files_of_a_crash_do_not_stop_the_next_start(tmp_path: Path):
    # In a container the process id is the same at every start.
    (tmp_path / f"master.key.{os.getpid()}").touch(0o600)
    vault = load_vault(VARIABLE, tmp_path / "master.key")
    assert vault.open(vault.seal(SECRET, IDENTITY), IDENTITY) == SECRET
