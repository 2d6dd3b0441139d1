"""Look for known advisories of locked packages: `audit.py PIP_AUDIT LOCK_FILE [OPTION …]`.

pip-audit gets the advisories from the package index. Where the index has none it skips every package and
reports success; this script prints that, and with --strict exits with an error.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_PINNED = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*==[^ ;\\]+", re.MULTILINE)


def audited(pip_audit: str, requirements: str, options: list[str]) -> list[dict[str, Any]] | None:
    """Return the known advisories of each package, None where the index has none."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(requirements)
        line = [pip_audit, "--requirement", file, "--disable-pip", "--no-deps", "--format", "json"]
        ended = subprocess.run(
            [*line, "--progress-spinner", "off", *options], capture_output=True, text=True, check=False
        )
    try:
        packages = json.loads(ended.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        return None
    return None if all("skip_reason" in package for package in packages) else packages


def main(pip_audit: str, lock: str, *options: str) -> int:
    pins = _PINNED.findall(Path(lock).read_text())
    others = [option for option in options if option != "--strict"]
    # One package first: it shows whether the index has advisories at all.
    if (
        audited(pip_audit, pins[0], others) is None
        or (packages := audited(pip_audit, "\n".join(pins), others)) is None
    ):
        print("Known advisories were not checked: the package index does not offer them here.")
        return 1 if "--strict" in options else 0
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    found = [(p, advisory) for p in packages for advisory in p.get("vulns", ())]
    for package, advisory in found:
        fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    print(f"{len(packages) - len(skipped)} packages checked, {len(found)} advisories.")
    if skipped:
        print(f"Not checked: {', '.join(skipped)}.")
    return 1 if found or (skipped and "--strict" in options) else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
