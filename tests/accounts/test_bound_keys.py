"""A key is sent to the address that it was checked against, and to no other."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import dagster as dg
import pytest
from sqlalchemy import text

from finora_pipeline.accounts.model import AccountsError
from finora_pipeline.accounts.onboarding import address_to_check
from finora_pipeline.accounts.store import accounts_of
from finora_pipeline.definitions import build_defs
from finora_pipeline.openai_admin.addresses import AddressError
from finora_pipeline.resources.openai_admin import OpenAIAdmin
from finora_pipeline.settings import BASE_URL_FILE
from tests.conftest import QUICK, Installation


@contextmanager
def listener() -> Iterator[tuple[str, list[bytes]]]:
    """Serve a stranger's server on another loopback address; yield what it receives."""
    received: list[bytes] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                received.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1", received
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(timeout=5)


@pytest.fixture
def installation(start_openai, install) -> Installation:
    """An installation with one user, connected to a simulated OpenAI on loopback."""
    installation = install(start_openai(days=2, services=False))
    installation.connect()
    return installation


def rebind(installation: Installation, address: str) -> None:
    """Change the stored address, as an attacker with write access could."""
    with installation.accounts.database.write() as database:
        for table, column in (("connections", "base_url"), ("credentials", "bound_to")):
            database.execute(text(f"UPDATE {table} SET {column} = :address"), {"address": address})


@pytest.mark.slow
def test_a_key_bound_to_this_machine_may_change_port(installation: Installation, start_openai, install):
    assert installation.accounts.connections.all()[0].base_url == "http://127.0.0.1/v1"
    elsewhere = install(start_openai(days=2, services=False))
    assert elsewhere.settings.openai_base_url != installation.settings.openai_base_url
    assert elsewhere.refresh().failed_users == []


def test_an_address_changed_in_the_database_does_not_receive_the_key(installation: Installation):
    rebind(installation, "https://attacker.example/v1")
    (failed,) = installation.refresh().failed_users
    assert "does not decrypt" in (failed.message or "")


def test_a_key_bound_elsewhere_is_not_sent_to_the_configured_address(installation: Installation):
    key = installation.accounts.connections.key_ring(["user-0"]).key_of("user-0")
    known = installation.accounts.connections.get("user-0")
    assert known is not None
    installation.accounts.connections.save(
        "user-0", key, known.organization, address="https://api.openai.invalid/v1", known=known
    )
    with listener() as (address, received):
        installation.settings = replace(installation.settings, openai_base_url=address)
        (failed,) = installation.refresh().failed_users
    assert received == []
    assert failed.reason != "vault"


def test_a_key_of_this_machine_is_not_sent_to_a_configured_gateway(installation: Installation):
    installation.settings = replace(installation.settings, openai_base_url="https://gateway.example/v1")
    (failed,) = installation.refresh().failed_users
    assert "OPENAI_BASE_URL names gateway.example" in (failed.message or "")


@pytest.mark.parametrize(
    "redirected",
    [
        {"openai_admin": {"config": {"base_url": "ADDRESS"}}},
        {"warehouse": {"config": {"home": "/tmp"}}},
        {"accounts": {"config": {"url": "sqlite://", "master_key_file": "/tmp/key"}}},
        {"io_manager": {"config": {"base_dir": "/tmp/elsewhere"}}},
    ],
)
def test_run_config_cannot_redirect_keys_or_data(installation: Installation, redirected):
    with listener() as (address, received):
        for resource in redirected.values():
            resource["config"] = {
                name: value.replace("ADDRESS", address) for name, value in resource["config"].items()
            }
        admin = OpenAIAdmin(installation.settings.openai_base_url, QUICK)
        job = build_defs(installation.settings, openai_admin=admin).resolve_job_def("refresh")
        with pytest.raises(dg.DagsterInvalidConfigError):
            job.execute_in_process(run_config={"resources": redirected}, raise_on_error=False)
    assert received == []


def unbound(installation: Installation) -> None:
    """Store the user's key without an address, as older versions did."""
    key = installation.accounts.connections.key_ring(["user-0"]).key_of("user-0").reveal()
    sealed = installation.accounts.vault.seal(key, "finora/openai/1/user-0")
    with installation.accounts.database.write() as database:
        database.execute(
            text(
                "UPDATE credentials SET bound_to = NULL, master_key_id = :id, wrapped_key = :wrapped, "
                "ciphertext = :ciphertext"
            ),
            {"id": sealed.master_key_id, "wrapped": sealed.wrapped_key, "ciphertext": sealed.ciphertext},
        )
        database.execute(text("UPDATE connections SET base_url = NULL"))


def test_an_upgrade_binds_keys_to_the_folders_own_address(installation: Installation):
    unbound(installation)
    (installation.settings.home / BASE_URL_FILE).write_text(installation.settings.openai_base_url)
    settings = replace(installation.settings, folder_base_url=installation.settings.openai_base_url)
    upgraded = accounts_of(settings).connections.get("user-0")
    assert upgraded is not None
    assert upgraded.base_url == "http://127.0.0.1/v1"
    installation.accounts = accounts_of(settings)
    assert installation.refresh().failed_users == []


def test_an_upgrade_without_an_address_file_binds_keys_to_openai(installation: Installation):
    unbound(installation)
    settings = replace(installation.settings, openai_base_url="https://api.openai.com/v1")
    upgraded = accounts_of(settings).connections.get("user-0")
    assert upgraded is not None
    assert upgraded.base_url == "https://api.openai.com/v1"


def test_after_an_upgrade_another_configured_address_waits_for_an_operator(installation: Installation):
    unbound(installation)
    with listener() as (address, received):
        installation.settings = replace(installation.settings, openai_base_url=address)
        installation.accounts = accounts_of(installation.settings)
        (failed,) = installation.refresh().failed_users
    assert received == []
    assert "finora update --user user-0 --keep-key --base-url" in (failed.message or "")


@pytest.mark.parametrize(
    ("asked", "configured", "address"),
    [
        (None, "https://api.openai.com/v1", "https://api.openai.com/v1"),
        (None, "https://eu.api.openai.com/v1", "https://eu.api.openai.com/v1"),
        (None, "http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1"),
        ("https://gateway.example/v1", "https://api.openai.com/v1", "https://gateway.example/v1"),
        ("https://us.api.openai.com/v1", "http://rubbish", "https://us.api.openai.com/v1"),
    ],
)
def test_a_key_is_checked_at_an_allowed_address(asked, configured, address):
    assert str(address_to_check(asked, None, configured)) == address


@pytest.mark.parametrize(
    ("asked", "configured"),
    [
        (None, "https://gateway.example/v1"),
        (None, "hello"),
        ("http://gateway.example/v1", "https://api.openai.com/v1"),
    ],
)
def test_a_key_is_checked_at_no_other_address(asked, configured):
    with pytest.raises((AccountsError, AddressError)):
        address_to_check(asked, None, configured)
