"""The house: imports run downwards, with no circle, and nothing is too long to be read."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "ddim_keras"
# From the ground up. A module imports from its own floor or from those below it.
FLOORS = [
    "support",
    "optimizers",
    "diffusion",
    "data",
    "networks",
    "samplers",
    "sampling",
    "training",
    "metrics",
    "plotting",
    "presets",
    "categorical",
    "model",
    "distilling",
    "runs",
    "serving",
    "cli",
    "__main__",
]
LONGEST_CLASS, LONGEST_FUNCTION = 300, 60


def name_of(path: pathlib.Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports_of(tree: ast.Module) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
        else:
            continue
        found |= {name for name in names if name in MODULES}
    return found


# The package's own __init__ hands out the public names of all floors; nothing but `ddim_keras`
# itself is on top of it.
GRAPH = {
    name: imports_of(tree) - {"ddim_keras"} for name, tree in TREES.items() if name != "ddim_keras"
}


def floor_of(name: str) -> int:
    return FLOORS.index(name.split(".")[1])


@pytest.mark.parametrize("name", GRAPH)
def test_imports_run_downwards(name):
    above = {other for other in GRAPH[name] if floor_of(other) > floor_of(name)}
    assert not above, f"{name} imports from above: {sorted(above)}"


def test_nothing_inside_imports_the_package_as_a_whole():
    whole = {
        name
        for name, tree in TREES.items()
        if name != "ddim_keras" and "ddim_keras" in imports_whole(tree)
    }
    assert not whole, (
        "`import ddim_keras` inside the package asks for everything: import the module"
    )


def imports_whole(tree: ast.Module) -> set[str]:
    """What `import x` and `from x import y` name, where y is no module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {
                node.module for alias in node.names if f"{node.module}.{alias.name}" not in MODULES
            }
    return found


def test_imports_make_no_circle():
    # A package's __init__ imports its modules; they may not import it back.
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for other in sorted(GRAPH[name]):
            if not (name + ".").startswith(other + ".") or other in imports_whole(TREES[name]):
                visit(other)
        done.add(path.pop())

    for name in GRAPH:
        visit(name)


def lines_of_code(node: ast.AST) -> int:
    """Lines with code on them: neither comments, docstrings, blank lines nor decorators."""
    docstrings = {
        id(inner.body[0])
        for inner in ast.walk(node)
        if isinstance(inner, (ast.FunctionDef, ast.ClassDef))
        and ast.get_docstring(inner) is not None
    }
    skipped = docstrings | {id(part) for part in getattr(node, "decorator_list", [])}
    lines = set()

    def collect(inner: ast.AST) -> None:
        if id(inner) in skipped:
            return
        if isinstance(inner, (ast.stmt, ast.expr, ast.arg, ast.keyword, ast.excepthandler)):
            lines.update((inner.lineno, inner.end_lineno))
        for child in ast.iter_child_nodes(inner):
            collect(child)

    collect(node)
    return len(lines)


def too_long(kind, limit: int) -> dict[str, int]:
    sizes = {
        f"{name}.{node.name}": lines_of_code(node)
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, kind)
    }
    return {name: size for name, size in sizes.items() if size > limit}


def test_no_class_is_over_300_lines_of_code():
    assert not too_long(ast.ClassDef, LONGEST_CLASS)


def test_no_function_is_over_60_lines_of_code():
    assert not too_long((ast.FunctionDef, ast.AsyncFunctionDef), LONGEST_FUNCTION)
