"""The installation's `dagster.yaml`: its own values merged over those this version ships.

    $DAGSTER_HOME/dagster.yaml           read by Dagster; an operator may edit it
    $DAGSTER_HOME/.dagster.shipped.yaml  the values shipped by the version that wrote it, to detect edits

An unedited file of an earlier version is replaced as a whole, including comments.
"""

import fcntl
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from finora_pipeline.data_folder.private_files import open_lock

INSTANCE_FILE = "dagster.yaml"
SHIPPED = Path(__file__).parent / INSTANCE_FILE
_BASE_FILE = ".dagster.shipped.yaml"
# SHA-256 of the files shipped by versions that wrote no base file.
_EARLIER_COPIES = {
    "f7184c3e73e79278ea28109d469cc7e38261a2f88005c53406af9ce54944e597",
    "ebc39d8aa1fb8dbbf471dd4977047daa7900ec97c001680427d61c53880f35aa",
    "766f7c3c4d3e180f261a96bce50de3a7ee041c86221365cc4051dbb8675c303e",
    "6ce62c0d6fbeaffd9d7055cb0acb3e3b71d48de2c6d09465b9b3936054290d05",
    "d64f8fb73a4b0e17af625f7f959019522fa99a9131151c3eaa6c9841fb13c817",
    "bb9d43cd75b15254baa1181b1a4b46cfd5f6852eaf1f2903b6184fd46611b5a9",
}
# Sections that name a class or one of several kinds, whose parts cannot be merged.
_WHOLE = {
    "storage", "run_storage", "event_log_storage", "schedule_storage", "run_launcher", "run_coordinator",
    "compute_logs", "scheduler", "local_artifact_storage", "secrets",
}  # fmt: skip
_HEAD = """\
# Finora's values merged with your own. Edit it freely: upgrades of finora keep your values.
"""


class InstanceFileError(Exception):
    """`dagster.yaml` cannot be read; the message says which file."""


def write_instance_file(dagster_home: Path) -> None:
    """Write `dagster.yaml` if it is missing or another version's. Raises `InstanceFileError`."""
    target, base = dagster_home / INSTANCE_FILE, dagster_home / _BASE_FILE
    shipped = SHIPPED.read_text()
    if target.exists() and base.exists() and base.read_text() == shipped:
        return
    descriptor = open_lock(dagster_home / ".create.lock")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        text = shipped
        if target.exists():
            installed = target.read_text()
            known = base.read_text() if base.exists() else ""
            if not _is_copy(installed, known):
                # Without a base file every value counts as the installation's own.
                own = _changes(_parsed(target, installed), _parsed(base, known))
                text = _HEAD + yaml.safe_dump(_merged(_parsed(SHIPPED, shipped), own), sort_keys=False)
                _write(target.with_name(f"{INSTANCE_FILE}.before-upgrade"), installed)
        _write(target, text)
        _write(base, shipped)
    finally:
        os.close(descriptor)


def drift(dagster_home: Path) -> list[str]:
    """The values of `dagster.yaml` that differ from this version's, one line each."""
    target = dagster_home / INSTANCE_FILE
    if not target.exists():
        return []
    shipped = _flat(_parsed(SHIPPED, SHIPPED.read_text()))
    own = _flat(_parsed(target, target.read_text()))
    return [
        f"{name}: {own.get(name, 'not set')} (shipped: {shipped.get(name, 'not set')})"
        for name in sorted({*own, *shipped})
        if own.get(name) != shipped.get(name)
    ]


def _is_copy(installed: str, base: str) -> bool:
    return installed == base or hashlib.sha256(installed.encode()).hexdigest() in _EARLIER_COPIES


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        parsed = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        raise InstanceFileError(
            f"{path} is not valid YAML. Correct it, or delete it to get the shipped one."
        ) from None
    if not isinstance(parsed, dict):
        raise InstanceFileError(
            f"{path} must hold settings. Correct it, or delete it to get the shipped one."
        )
    return parsed


def _changes(installed: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a file that differ from its base."""
    changed: dict[str, Any] = {}
    for name, value in installed.items():
        before = base.get(name)
        if value == before:
            continue
        if isinstance(value, dict) and isinstance(before, dict) and name not in _WHOLE:
            value = _changes(value, before)
        changed[name] = value
    return changed


def _merged(shipped: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(shipped)
    for name, value in own.items():
        known = merged.get(name)
        if name not in _WHOLE and isinstance(value, dict) and isinstance(known, dict):
            merged[name] = _merged(known, value)
        elif isinstance(value, list) and isinstance(known, list) and _keyed(value) and _keyed(known):
            merged[name] = list((_keyed(known) | _keyed(value)).values())
        else:
            merged[name] = value
    return merged


def _keyed(items: list[Any]) -> dict[str, Any]:
    """Concurrency limits by their tag; empty for any other list."""
    is_keyed = all(isinstance(item, dict) and "key" in item for item in items)
    return {f"{item['key']}={item.get('value')}": item for item in items} if is_keyed else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list) and _keyed(value):
            flat |= _flat(_keyed(value), f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)
