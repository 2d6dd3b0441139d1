"""Imports point down the layers of docs/architecture.md, and private things of Dagster have one folder."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from finora_pipeline.instance.run_launcher import WatchedRunLauncher
from finora_pipeline.instance.sqlite_storage import KeptEventLogStorage, KeptSqliteStorage

PACKAGE = Path(__file__).parent.parent / "finora_pipeline"
# From the bottom up; folders of a layer do not import each other.
LAYERS = (
    ("openai_admin", "plans"),
    ("settings", "openai_simulator"),
    ("data_folder",),
    ("accounts", "warehouse", "instance"),
    ("ingest", "alerts", "reading"),
    ("resources", "dashboard"),
    ("assets",),
    ("jobs",),
    ("schedules", "sensors"),
    ("definitions",),
    ("server",),
    ("cli",),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
# What Python, or the dagster.yaml of earlier versions, looks for at the top.
SHIMS = {"instance_storage", "instance_storage_postgres", "run_launcher"}
ENTRY_POINTS = {"__init__": "reading", "__main__": "cli"}


def room(module: str) -> str:
    """The folder or top module that a module of the package is in."""
    return [*module.split("."), "__init__"][1]


def imports(path: Path) -> Iterator[str]:
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.startswith("finora_pipeline"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("finora_pipeline"):
            assert node.module
            folder = PACKAGE.parent / node.module.replace(".", "/")
            for one in node.names:
                is_module = (folder / f"{one.name}.py").exists() or (folder / one.name).is_dir()
                yield f"{node.module}.{one.name}" if is_module else node.module


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_file_has_a_layer():
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert rooms == set(LAYER_OF) | SHIMS | set(ENTRY_POINTS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in SHIMS:
        assert {room(module) for module in imports(path)} == {"instance"}
        return
    above = ENTRY_POINTS.get(own, own)
    for module in imports(path):
        other = room(module)
        assert other == above or LAYER_OF[other] < LAYER_OF[above], f"{path.name} imports {module}"


def test_modules_of_a_folder_import_each_other_in_one_direction():
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = "finora_pipeline." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        graph[name.removesuffix(".__init__")] = set(imports(path))
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " → ".join((*way, name))
        if name not in done:
            for other in sorted(graph.get(name, ())):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_dagsters_private_parts_are_used_in_one_folder():
    private = re.compile(r"\bdagster\._|\bdagster_webserver\b|\bdagster_graphql\b")
    users = {path.relative_to(PACKAGE).parts[0] for path in FILES if private.search(path.read_text())}
    assert users <= {"instance"}


def private_names() -> Iterator[tuple[str, str]]:
    """Each private thing of Dagster that is imported: its module and its name."""
    for path in sorted((PACKAGE / "instance").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_private = isinstance(node, ast.ImportFrom) and re.match(
                r"dagster\._|dagster_webserver|dagster_postgres", node.module or ""
            )
            if is_private:
                yield from ((node.module, one.name) for one in node.names)  # type: ignore[union-attr]


@pytest.mark.parametrize(("module", "name"), sorted(set(private_names())))
def test_dagster_still_has_the_private_thing(module: str, name: str):
    if module.startswith("dagster_postgres"):
        pytest.importorskip("dagster_postgres")
    found = importlib.import_module(module)
    assert hasattr(found, name), f"Dagster has dropped {module}.{name}; look who uses it in instance/."


def inherited_names(kind: type) -> set[str]:
    """The attributes that a class of ours overrides or uses without making them."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(tree, ast.ClassDef)
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    overridden = {name for name in own if any(name in vars(base) for base in kind.__mro__[1:])}
    used, made = set[str](), set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()"):
            (made if isinstance(node.ctx, ast.Store) else used).add(node.attr)
    return overridden | used - made - own


@pytest.mark.parametrize("kind", [KeptEventLogStorage, KeptSqliteStorage, WatchedRunLauncher])
def test_dagsters_classes_still_have_what_ours_inherit(kind: type):
    names = inherited_names(kind)
    assert names
    bases = [base for base in kind.__mro__[1:] if base.__module__.startswith("dagster")]
    sources = "\n".join(inspect.getsource(base) for base in bases)
    missing = sorted(name for name in names if not re.search(rf"\b{name}\b", sources))
    assert missing == [], f"Dagster has dropped {missing}, which {kind.__name__} needs."
