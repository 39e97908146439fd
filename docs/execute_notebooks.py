"""Runs the notebooks of docs/notebooks and stores their output, without Jupyter: cells run in order in one namespace, in a temporary folder.

python docs/execute_notebooks.py [NAME ...]
"""

import ast
import base64
import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

FOLDER = Path(__file__).parent / "notebooks"


def execute(path: Path) -> dict[str, Any]:
    """Run a notebook.

    Returns:
        The notebook with the output of its cells; the file stays as it is.
    """
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        for count, cell in enumerate(cells, 1):
            cell["execution_count"] = count
            cell["outputs"] = _run("".join(cell["source"]), names, f"{path.name}, cell {count}", count)
    return notebook


def _run(code: str, names: dict[str, Any], where: str, count: int) -> list[dict[str, Any]]:
    body = ast.parse(code, where).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(ast.Module(body, []), where, "exec"), names)  # noqa: S102 (our own notebooks)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)  # noqa: S307 (our own notebooks)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append(
            {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)}
        )
    if value is not None:
        result = {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": shown(value)}
        outputs.append(result)
    return outputs


def shown(value: Any) -> dict[str, Any]:
    """What a notebook stores of a value: its text, and its HTML or its picture."""
    data: dict[str, Any] = {"text/plain": re.sub(r" at 0x\w+", "", repr(value))}  # addresses differ in every run
    if hasattr(value, "_repr_html_") and (page := value._repr_html_()):
        return data | {"text/html": page}
    if hasattr(value, "savefig"):
        drawn = io.BytesIO()
        value.savefig(drawn, format="png", dpi=80)
        value = Image.open(drawn)
    if isinstance(value, Image.Image):
        small = io.BytesIO()
        value.convert("RGB").save(small, format="JPEG", quality=85)
        data["image/jpeg"] = base64.b64encode(small.getvalue()).decode()
    return data


def main(arguments: list[str]) -> None:
    for path in [FOLDER / name for name in arguments] or sorted(FOLDER.glob("*.ipynb")):
        path.write_text(json.dumps(execute(path), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path}: {path.stat().st_size / 1e3:.0f} KB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
