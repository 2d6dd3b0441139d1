"""The wheel works without a clone: all its files are in, and the demo runs from an empty folder."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "finora_pipeline"
SITE = PACKAGE / "site"
# Every module but the entry point and Alembic's, and what could not be found.
IMPORT_ALL = """
import importlib, pkgutil, finora_pipeline
for module in pkgutil.walk_packages(finora_pipeline.__path__, "finora_pipeline."):
    if not module.name.endswith("__main__") and ".migrations" not in module.name:
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            print(error.name)
"""
# One of each kind: what is not Python is what a build forgets.
SENTINELS = (
    "finora_pipeline/**/dagster.yaml",
    "finora_pipeline/**/service_names.csv",
    "finora_pipeline/**/static/app.css",
    "finora_pipeline/**/static/app.js",
    "finora_pipeline/**/templates/overview.html",
    "finora_pipeline/**/migrations/0001_tables.sql",
    "finora_pipeline/**/sql/daily_costs.sql",
    "finora_pipeline/**/migrations/env.py",
    "finora_pipeline/py.typed",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this source tree."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def locked_distributions() -> list[str]:
    """The packages that requirements.lock holds for this Python and system, all of them installed."""
    lines = re.findall(r"^([A-Za-z0-9][^\\\n]*)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    locked = map(Requirement, lines)
    return [pinned.name for pinned in locked if pinned.marker is None or pinned.marker.evaluate()]


def link_dependencies(site_packages: Path) -> None:
    """Shows a virtual environment the locked packages of the product, out of this environment.

    Nothing is downloaded. Neither what only developers install nor this source tree, which this environment
    has as an editable package, can be imported there: a dependency that is not declared is missing.
    """
    for name in locked_distributions():
        found = distribution(name)
        for top in {PurePosixPath(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = site_packages / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of a virtual environment in which the wheel is installed."""
    venv = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    paths = sysconfig.get_paths(scheme="venv", vars={"base": str(venv), "platbase": str(venv)})
    link_dependencies(Path(paths["purelib"]))
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        str(venv / "bin" / "python"),
    ]
    subprocess.run([*command, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    return venv / "bin"


def run(command: list[str | Path], folder: Path) -> str:
    """The output of a command in an empty folder with an empty home."""
    home = folder / "user"
    home.mkdir(exist_ok=True)
    environment = {"HOME": str(home), "PATH": os.defpath, "LANG": "C.UTF-8"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_all_files_of_the_package_are_in_the_wheel(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    inside = {name for name in names if name.startswith("finora_pipeline/")}
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and SITE not in path.parents
    }
    assert {name for name in inside if not name.startswith("finora_pipeline/site/")} == expected
    for pattern in SENTINELS:
        assert list(ROOT.glob(pattern)), f"{pattern} is no longer in the source tree"

    # Everything else is the metadata, with the license.
    others = names - inside
    assert all(".dist-info/" in name for name in others)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in others)


def test_the_documentation_is_in_the_wheel_where_it_is_built(wheel: Path):
    if not (SITE / "sitemap.xml").exists():
        pytest.skip("The documentation is not built: make site.")
    with zipfile.ZipFile(wheel) as archive:
        pages = {name for name in archive.namelist() if name.startswith("finora_pipeline/site/")}
    assert {path.relative_to(ROOT).as_posix() for path in SITE.rglob("*.html")} <= pages
    assert not any(name.endswith(".map") for name in pages)


def test_the_installed_package_is_the_wheel(installed: Path, tmp_path: Path):
    source = "import finora_pipeline as package; print(package.__file__)"
    assert Path(run([installed / "python", "-c", source], tmp_path).strip()).is_relative_to(installed.parent)
    # What only developers install cannot be imported there, and no module asks for it.
    developers = "import importlib.util as util; print([util.find_spec(n) for n in ('pytest', 'playwright')])"
    assert run([installed / "python", "-c", developers], tmp_path).strip() == "[None, None]"
    missing = set(run([installed / "python", "-c", IMPORT_ALL], tmp_path).split())
    # The extra "postgres" brings these.
    assert missing <= {"dagster_postgres", "psycopg2"}


@pytest.mark.daemon
def test_the_demo_runs_from_an_empty_folder(installed: Path, tmp_path: Path):
    summary = run([installed / "finora", "demo", "--once"], tmp_path)
    for words in ("Connected demo-growth", "users", "days", "total", "$", "per 1k tokens", "finora sql"):
        assert words in summary
    assert (tmp_path / "data" / "published" / "finora.duckdb").is_file()
