"""Sizes of files, functions and folders, uniqueness of names, and imports without circles."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ldmprobe_core", "ldmprobe", "flows", "tasks", "infra")

MODULES_A_FOLDER = 13
LINES_A_FILE = 400
LINES_A_FUNCTION = 60

SHARED_NAMES: dict[str, str] = {}
"""Public names that two core modules may define, with the reason."""

LONG_FILES = {"tests/infra/test_stack.py"}
"""All tests of the stack share one, whose start takes minutes."""


@cache
def syntax_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def modules(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_cores_top_level_holds_init_and_errors_only():
    names = {path.name for path in (ROOT / "ldmprobe_core").glob("*.py")}
    assert names == {"__init__.py", "errors.py"}


def test_folders_hold_few_modules():
    folders = {path.parent for path in modules(*PACKAGES)}
    sizes = {relative(folder): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name for name, n in sizes.items() if n > MODULES_A_FOLDER} == set()


def test_files_are_short():
    lengths = {
        relative(path): len(path.read_text().splitlines()) for path in modules(*PACKAGES, "tests")
    }
    assert {name for name, lines in lengths.items() if lines > LINES_A_FILE} == LONG_FILES


def test_functions_are_short():
    lengths = {
        f"{relative(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in modules(*PACKAGES)
        for node in ast.walk(syntax_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name for name, lines in lengths.items() if lines > LINES_A_FUNCTION} == set()


def top_level_names(tree: ast.Module) -> Iterator[str]:
    """Classes, functions and constants that a module defines, without imports."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign):
            names = (part for target in node.targets for part in ast.walk(target))
            yield from (name.id for name in names if isinstance(name, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def test_public_names_of_the_core_are_unique():
    homes = defaultdict(list)
    for path in modules("ldmprobe_core"):
        for name in set(top_level_names(syntax_tree(path))):
            if not name.startswith("_"):
                homes[name].append(relative(path))
    shared = {name: paths for name, paths in homes.items() if len(paths) > 1}
    assert {name: paths for name, paths in shared.items() if name not in SHARED_NAMES} == {}


def test_modules_import_each_other_in_no_circle():
    """Imports inside functions, which defer loading, and for types alone count too."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=False, cache_dir=None)
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    assert len(imports) > 300
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the modules


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def of_a_package(module: str | None) -> bool:
    return (module or "").split(".")[0] in PACKAGES


def private_uses(tree: ast.Module) -> Iterator[str]:
    """Private names that a test imports from a package, reads off a module of one, or patches.

    A patch names its target in a string (``"flows.workers._limit"``) or as the second argument of
    ``setattr`` or ``patch.object``.
    """
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and of_a_package(node.module):
            yield from (part for part in (node.module or "").split(".") if is_private(part))
            yield from (alias.name for alias in node.names if is_private(alias.name))
            imported |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            of_ours = [alias for alias in node.names if of_a_package(alias.name)]
            imported |= {alias.asname or alias.name.split(".")[0] for alias in of_ours}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            base = node.value
            while isinstance(base, ast.Attribute):
                base = base.value
            if isinstance(base, ast.Name) and base.id in imported:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and _name_of(node.func) in ("setattr", "delattr", "object"):
            target = node.args[1] if len(node.args) > 1 else None
            if isinstance(target, ast.Constant) and is_private(str(target.value)):
                yield str(target.value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split(".")
            if of_a_package(node.value) and all(part.isidentifier() for part in parts):
                yield from (node.value for part in parts if is_private(part))


def _name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def test_tests_use_public_names_only():
    private = {relative(path): sorted(private_uses(syntax_tree(path))) for path in modules("tests")}
    assert {path: names for path, names in private.items() if names} == {}
