"""Tests of what import-linter cannot hold: circles of a package and its own modules, and imports of torch on the way."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import neumann

ROOT = Path(neumann.__file__).parent
ROOMS_WITHOUT_TORCH = ("cli", "config", "launch", "processes", "search", "store", "studies")
PACKAGES = sorted(path.parent for path in ROOT.rglob("__init__.py") if path.parent != ROOT)


def name_of(path: Path) -> str:
    return ".".join(("neumann", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each ``from module import name`` of a file, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)


def is_module(package: Path, name: str) -> bool:
    return (package / f"{name}.py").exists() or (package / name / "__init__.py").exists()


@pytest.mark.parametrize("package", PACKAGES, ids=name_of)
def test_no_module_imports_from_a_package_that_imports_it(package: Path) -> None:
    own = name_of(package / "__init__.py")
    used = {module.removeprefix(f"{own}.").split(".")[0] for module, _ in imported(package / "__init__.py")}
    used |= {name for module, name in imported(package / "__init__.py") if module == own}
    for module in sorted(used):
        path = package / f"{module}.py"
        if path.exists():
            back = {name for origin, name in imported(path) if origin == own and not is_module(package, name)}
            assert not back, f"{name_of(path)} imports {back} from {own}, which imports it"


@pytest.mark.medium
def test_no_module_of_these_rooms_imports_torch_on_its_way(python: Callable[[str], str]) -> None:
    names = [name_of(path) for room in ROOMS_WITHOUT_TORCH for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(names) > 60
    code = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(name + " imports torch")
"""
    assert python(code) == ""
