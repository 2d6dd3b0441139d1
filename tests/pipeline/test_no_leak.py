"""No Admin key is written anywhere, in clear, base64 or URL-encoded."""

import asyncio
import base64
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from finora_pipeline.accounts import onboarding as connections
from finora_pipeline.cli import main
from finora_pipeline.openai_admin.client import open_client
from finora_pipeline.openai_simulator import Fault, FaultKind, KeyState
from tests.conftest import QUICK, Installation


def forms(key: str) -> list[bytes]:
    """Return forms of a key: plain, URL-encoded, and base64 at any offset."""
    raw = key.encode()
    encoded = [base64.b64encode(b"x" * offset + raw)[4:-4] for offset in range(3)]
    return [raw, quote(key, safe="").encode(), quote(key, safe="").replace("-", "%2D").encode(), *encoded]


def contents(home: Path) -> Iterator[tuple[Path, bytes]]:
    """Return every file's bytes, decompressed where compressed."""
    for path in home.rglob("*"):
        if not path.is_file():
            continue
        yield path, path.read_bytes()
        if path.suffix == ".parquet":
            yield path, repr(pq.ParquetFile(path).read().to_pylist()).encode()
        if path.suffix == ".duckdb":
            with duckdb.connect(path, read_only=True) as connection:
                for schema, table in connection.execute(
                    "SELECT schema_name, table_name FROM duckdb_tables()"
                ).fetchall():
                    rows = connection.execute(f'FROM "{schema}"."{table}"').fetchall()
                    yield path, repr(rows).encode()


def test_no_key_is_left_anywhere(
    start_openai,
    install,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    caplog.set_level(logging.DEBUG)
    openai = start_openai(organizations=4, days=4)
    monkeypatch.setenv("OPENAI_BASE_URL", openai.base_url)
    installation: Installation = install(openai)
    installation.connect(plan="trial")
    first, second, third, fourth = openai.organizations
    installation.run()
    openai.simulator.set_key_state(second.admin_key, KeyState.REVOKED)
    openai.simulator.add_fault(third, Fault(FaultKind.ECHO_KEY))
    openai.simulator.add_fault(fourth, Fault(FaultKind.RESET))
    installation.run()
    rotated = first.new_admin_key(2)
    openai.simulator.add_key(first, rotated)

    async def update() -> None:
        async with open_client(openai.base_url, QUICK) as client:
            await connections.update(installation.accounts, client, "user-0", rotated)

    asyncio.run(update())
    terminal = CliRunner()
    wrong = "sk-admin-thiskeyisknowntonobody0123456789"
    messages = [
        terminal.invoke(main, ["connect", "--user", "late", "--plan", "trial"], input=wrong).output,
        terminal.invoke(main, ["connect", "--many"], input=f"{rotated},trial,{wrong}\n").output,
        terminal.invoke(main, ["status", "--json"]).output,
        terminal.invoke(main, ["remove", "--user", "user-3", "--yes"]).output,
    ]
    assert "does not accept this key" in messages[0]
    captured = capfd.readouterr()
    written = "\n".join([*messages, captured.out, captured.err, caplog.text]).encode()

    keys = [wrong, rotated, *(organization.admin_key for organization in openai.organizations)]
    found = list(contents(installation.settings.home))
    assert any(path.name.endswith(".parquet") for path, _ in found)
    assert any("dagster" in path.parts for path, _ in found)
    for key in keys:
        for form in forms(key):
            assert form not in written
            assert [str(path) for path, content in found if form in content] == []


def test_the_search_would_find_a_key(tmp_path: Path):
    key = "sk-admin-thiskeyisknowntonobody0123456789"
    (tmp_path / "a.txt").write_bytes(base64.b64encode(b"xy" + key.encode() + b"tail"))
    (_, content) = next(contents(tmp_path))
    assert any(form in content for form in forms(key))
