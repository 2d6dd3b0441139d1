"""Run a notebook's code cells in order, as a kernel does; print what each of them shows, as JSON."""

import ast
import json
import sys
from pathlib import Path
from typing import Any


def run(source: str, names: dict[str, Any]) -> str:
    """Run a cell and return its last expression as HTML or text; empty if it ends with a statement."""
    module = ast.parse(source)
    shown = module.body.pop() if isinstance(module.body[-1], ast.Expr) else None
    exec(compile(module, "<cell>", "exec"), names)
    if not isinstance(shown, ast.Expr):
        return ""
    value = eval(compile(ast.Expression(shown.value), "<cell>", "eval"), names)
    return value._repr_html_() if hasattr(value, "_repr_html_") else repr(value)


if __name__ == "__main__":
    notebook = json.loads(Path(sys.argv[1]).read_text())
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    print(json.dumps({cell["id"]: run("".join(cell["source"]), namespace) for cell in cells}))
