"""No file that anybody made is run as code: what would do that is called nowhere in the package."""

import ast
from pathlib import Path

import pytest

import attnhook

PACKAGE = Path(attnhook.__file__).parent
# The last two parts of what is called. `pickle.dumps` compares states of random generators; nothing is ever read back.
RUNS_CODE = {
    *(
        f"{module}.{name}"
        for module in ("pickle", "marshal", "dill", "cloudpickle", "joblib")
        for name in ("load", "loads")
    ),
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "shelve.open", "runpy.run_path", "yaml.load"),
    *("torch.load", "np.load", "numpy.load", "hub.load", "pd.read_pickle"),
}
MODULES = {"dill", "cloudpickle", "joblib", "shelve", "marshal", "runpy", "ctypes"}


def called(source: str) -> set[str]:
    """What a file calls and imports, of the above; calls with `shell=True`, and code that a hub may bring."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ".".join(ast.unparse(node.func).split(".")[-2:])
            found |= {name} & RUNS_CODE
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if keyword.arg in ("shell", "trust_remote_code", "allow_pickle") and value != "False":
                    found.add(f"{name}({keyword.arg}={value})")
                if keyword.arg == "weights_only" and value != "True":
                    found.add(f"{name}(weights_only={value})")
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found |= {name.partition(".")[0] for name in names} & MODULES
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    # `shtab.complete(parser, shell="bash")` names the shell to write for; nothing is run in it.
    assert {one for one in called(path.read_text()) if not one.startswith("shtab.complete(")} == set()


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "subprocess.run(line, shell=True)",
        "eval(text)",
        "load_state(weights_only=False)",
        "from ctypes import CDLL",
    ],
)
def test_the_check_sees_each(source: str) -> None:
    assert called(source)
