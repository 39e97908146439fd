"""The plan of the house: who may import whom, how long a file may be, what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import attnhook

PACKAGE = Path(attnhook.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
BASE = {"errors", "options", "files", "_deprecated"}
MODELS = BASE | {"capture", "imaging", "zoo", "attribution"}
RUNS = MODELS | {"running", "pages"}
USES = {"results", "monitoring", "comparison", "extraction", "answers"}
MAY_IMPORT = {
    "_deprecated": set(),
    "workflows": {"_deprecated"},
    "errors": set(),
    "options": {"errors"},
    "files": set(),
    "capture": BASE,
    "imaging": BASE | {"names"},
    "zoo": BASE | {"capture", "imaging"},
    "attribution": BASE | {"capture", "imaging"},
    "pages": BASE | {"imaging", "attribution"},
    "running": MODELS,
    "results": RUNS,
    "monitoring": RUNS | {"results"},  # uses take the drawing of a result from there, and nothing else of each other
    "comparison": RUNS | {"results"},
    "extraction": RUNS | {"results"},
    "answers": RUNS,
    "demo": RUNS | USES,
    "cli": RUNS | USES | {"demo"},
    "__main__": {"cli"},
    "names": set(),
    "__init__": {"names"},
}
HEAVY = ("timm", "transformers", "torchvision", "matplotlib", "tensorboard", "wandb", "mlflow", "lightning")


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_modules(source: str) -> list[tuple[str, bool]]:
    """Names of imported modules, and whether at module level."""
    tree = ast.parse(source)
    inside = {
        node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, node not in inside))
    return found


def own_imports(path: Path) -> list[str]:
    return [name for name, _ in imported_modules(path.read_text()) if name.startswith("attnhook.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way_through_the_rooms(path: Path) -> None:
    room = room_of(path)
    for name in own_imports(path):
        target = name.split(".")[1]
        assert target == room or target in MAY_IMPORT[room], f"{room} imports {name}"


def module_of(path: Path) -> str:
    return ".".join(("attnhook", *path.relative_to(PACKAGE).with_suffix("").parts))


def imported_files(path: Path) -> set[str]:
    """The modules a file imports, also as `from room import module`."""
    found = set(own_imports(path))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def circles(arrows: dict[str, set[str]]) -> set[str]:
    """What is left when everything that imports nothing of what is left has been taken away, again and again."""
    left = dict(arrows)
    while leaves := [name for name, targets in left.items() if not targets & left.keys()]:
        for name in leaves:
            del left[name]
    return set(left)


def test_no_circle_anywhere() -> None:
    files = {module_of(path): path for path in FILES if path.name not in ("__init__.py", "__main__.py")}
    assert not circles({name: imported_files(path) & files.keys() for name, path in files.items()})


def test_a_circle_through_three_files_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": set()}) == {"a", "b", "c", "d"}


def test_no_file_name_occurs_twice() -> None:
    names = [path.stem for path in FILES if path.name != "__init__.py"]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_lengths_and_names(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= (40 if path.name == "__init__.py" else 400)
    assert path.stem not in {"utils", "logging"}
    defined = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert path.stem not in defined


def test_the_checker_sees_a_forbidden_import() -> None:
    source = "def f():\n    import timm\nfrom attnhook.zoo.loading import load\n"
    assert set(imported_modules(source)) == {("attnhook.zoo.loading", True), ("timm", False)}


def test_imports_load_nothing_heavy() -> None:
    """Nor do writers before they are made, and figures do without pyplot also when one is drawn."""
    code = """if True:
        import sys, attnhook, attnhook.zoo.loading, attnhook.imaging.figures, attnhook.imaging.overlays
        from attnhook import AttentionCapture, AttentionMonitor, DirectoryWriter, MlflowWriter, TensorBoardWriter, WandbWriter
        print(*sys.modules)
        import numpy
        attnhook.imaging.overlay_figure(numpy.zeros((8, 8)), numpy.eye(8))
        print(*sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded, drawn = map(set, map(str.split, done.stdout.splitlines()))
    assert {"attnhook.capture.session", "attnhook.monitoring.integrations.mlflow"} <= loaded
    assert not {*HEAVY, "onnx"} & loaded
    assert "matplotlib.figure" in drawn
    assert "matplotlib.pyplot" not in drawn


def test_the_check_for_heavy_modules_works() -> None:
    code = "import matplotlib, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert set(HEAVY) & set(loaded)


def test_every_public_name_exists_and_is_documented() -> None:
    for name in attnhook.__all__:
        value = getattr(attnhook, name)
        assert not callable(value) or value.__doc__
    with pytest.raises(AttributeError, match="no_such_name"):
        attnhook.no_such_name  # noqa: B018
