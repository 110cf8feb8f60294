"""Imports go down only (see CONTRIBUTING.md), and three libraries stay where they belong."""

import ast
from pathlib import Path

import pytest

import csrtrain

PACKAGE = Path(csrtrain.__file__).parent

# From top to bottom; what stands on one row does not import each other.
ROWS = [
    ["cli"],
    ["report", "evaluate"],
    ["pretrain", "quality", "runs", "score", "controls", "onnx", "__init__"],
    ["bundle", "config_files", "grids"],
    ["data", "augment", "models", "losses", "metrics"],
    ["batches", "draws", "distributed", "files", "precision"],
]
# Files of the package that belong to a unit of another name.
PARTS = {"headers": "bundle", "heatmaps": "score"} | dict.fromkeys(["training_cli", "preview", "__main__"], "cli")
ROW_OF = {unit: number for number, row in enumerate(ROWS) for unit in row}

# Where a library may be imported, by file or folder.
HOMES = {
    "lightning": [
        "cli.py",
        "training_cli.py",
        "pretrain/",
        "quality/",
        "runs/",
        "data/unlabeled.py",
        "data/scored.py",
        "data/triplets.py",
    ],
    "kornia": ["augment/"],
    "wandb": ["runs/"],
}


def imported(tree, package):
    """Full names of everything that is imported anywhere in a file, with line numbers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package[: len(package) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def unit_of(parts):
    """The unit of a module of csrtrain, given its name within the package: ('data', 'index') -> 'data'."""
    name = parts[0] if parts else "__init__"
    return PARTS.get(name, name)


def violations(package):
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        here = unit_of(relative.with_suffix("").parts)
        if here not in ROW_OF:
            found.append(f"{relative}: {here} has no row")
            continue
        tree = ast.parse(path.read_text(), str(path))
        for name, line in imported(tree, ["csrtrain", *relative.parent.parts]):
            top, *rest = name.split(".")
            if top == "csrtrain":
                there = unit_of(rest if rest and unit_of(rest) in ROW_OF else [])
                if there != here and ROW_OF[there] <= ROW_OF[here]:
                    found.append(f"{relative}:{line}: {here} imports {there}")
            library = {"pytorch_lightning": "lightning", "lightning_fabric": "lightning"}.get(top, top)
            if library in HOMES and not any(relative.as_posix().startswith(home) for home in HOMES[library]):
                found.append(f"{relative}:{line}: {library} is imported outside of {', '.join(HOMES[library])}")
    return found


def test_imports_go_down():
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "source", "message"),
    [
        ("losses/a.py", "from csrtrain.models.backbone import Backbone", "losses/a.py:1: losses imports models"),
        ("losses/a.py", "from csrtrain import bundle", "losses/a.py:1: losses imports bundle"),
        ("losses/a.py", "from ..models import backbone", "losses/a.py:1: losses imports models"),
        ("draws.py", "import csrtrain.batches", "draws.py:1: draws imports batches"),
        ("bundle.py", "def f():\n    from csrtrain.runs import directory", "bundle.py:2: bundle imports runs"),
        ("models/a.py", "from csrtrain import load", "models/a.py:1: models imports __init__"),
        ("score.py", "import lightning.pytorch", "score.py:1: lightning is imported outside"),
        ("data/index.py", "from lightning_fabric import x", "data/index.py:1: lightning is imported outside"),
        ("models/a.py", "import kornia", "models/a.py:1: kornia is imported outside of augment/"),
        ("pretrain/a.py", "import wandb", "pretrain/a.py:1: wandb is imported outside of runs/"),
        ("utils.py", "", "utils.py: utils has no row"),
    ],
)
def test_violations_are_found(tmp_path, file, source, message):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    (found,) = violations(tmp_path)
    assert found.startswith(message)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("cli.py", "from csrtrain import __version__, bundle\nfrom csrtrain.runs import directory"),
        ("training_cli.py", "from csrtrain.cli import main\nimport lightning"),
        ("pretrain/a.py", "from csrtrain import draws\nfrom csrtrain.pretrain import b\nimport lightning.pytorch"),
        ("augment/a.py", "import kornia\nfrom .b import c\nfrom ..batches import ImageBatch"),
        ("__init__.py", "from csrtrain.bundle import load"),
    ],
)
def test_allowed_imports(tmp_path, file, source):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    assert violations(tmp_path) == []
