"""What a name stands for: a method for its own file, a class or function for one thing, a file for one idea."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from gankd.methods import METHODS

ROOT = Path(__file__).parent.parent
PACKAGES = ("gankd", "generators")
SOURCES = {
    path: path.read_text() for folder in (*PACKAGES, "scripts") for path in sorted((ROOT / folder).rglob("*.py"))
}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}
LENGTHS = {str(path.relative_to(ROOT)): text.count("\n") for path, text in SOURCES.items()}
METHOD_FILES = {name: Path(inspect.getsourcefile(method.Config)) for name, method in METHODS.items()}


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def words(tree: ast.AST) -> Iterator[ast.Constant]:
    """Strings in code; what a line of documentation shows is none."""
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_no_method_is_named_outside_its_own_file() -> None:
    found = [
        f"{where(path, node)} names {node.value}"
        for path, tree in TREES.items()
        for node in words(tree)
        if node.value in METHODS and path != METHOD_FILES[node.value] and path.name != "api.py"  # defaults of the doors
    ]
    assert not found, "\n".join(found)


def test_no_class_or_function_is_defined_twice_under_one_name() -> None:
    definitions: dict[str, list[str]] = defaultdict(list)
    for path, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and path.relative_to(ROOT).parts[0] in PACKAGES:
                definitions[node.name].append(where(path, node))
    twice = {name: places for name, places in definitions.items() if len(places) > 1 and not name.startswith("_")}
    assert not twice, "\n".join(f"{name}: {', '.join(places)}" for name, places in twice.items())


def test_files_are_short() -> None:
    long = {name: length for name, length in LENGTHS.items() if length > 450}
    names = {str(path.relative_to(ROOT)) for path in METHOD_FILES.values()} & LENGTHS.keys()  # not those of other tests
    long |= {name: LENGTHS[name] for name in names if LENGTHS[name] >= 200}
    assert not long, long


def test_the_source_does_not_grow() -> None:
    assert sum(LENGTHS.values()) <= 31_000  # 24,000 is where it should go; what was added since is new


# --- the floors that docs/architecture.md names -------------------------------------------------------------------------


def floors() -> dict[str, int]:
    """Every room's floor, 0 the lowest, as the document draws them: `a` < `b, c` < ..."""
    text = (ROOT / "docs/architecture.md").read_text().split("an import only goes down:")[1].split(". Rooms")[0]
    return {room: number for number, floor in enumerate(text.split("<")) for room in re.findall(r"\w+", floor) if room}


def room(path: str) -> str:
    """The room of a module or a file: the part of gankd that it is in, or another package."""
    package, *parts = path.removesuffix(".py").removesuffix(".__init__").split(".")
    return parts[0] if package == "gankd" and parts else package


def imports(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """What a file imports when it runs, at its top or later; what only a type checker reads is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "gankd":
            yield from ((node, f"gankd.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, node.module
        yield from imports(node)


def test_an_import_only_goes_down() -> None:
    """Generators import nothing of gankd, losses nothing of tasks, tasks nothing of evaluation, and so on."""
    levels, found = floors(), []
    for path, tree in TREES.items():
        own = room(".".join(path.relative_to(ROOT).parts))
        if own in ("gankd", "__init__"):
            continue  # the package itself names what its rooms hold
        assert own in levels, f"{path.relative_to(ROOT)}: docs/architecture.md puts {own} on no floor"
        for node, module in imports(tree):
            other = room(module)
            if module.split(".")[0] in PACKAGES and other not in (own, "gankd") and levels[other] >= levels[own]:
                found.append(f"{where(path, node)} imports {module}: {own} is not above {other}")
    assert not found, "\n".join(found)
