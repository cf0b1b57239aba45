"""What the repository says of itself is so: documents, pins and namespaces agree with the files."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from trilemma.config.small_options import all_groups, group_nodes

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("slurm/*.md"), *ROOT.glob("benchmarks/*.md")])
CODE_FOLDERS = ("src", "tests", "benchmarks")
INSTALLED_EXTRAS = ("demo", "dev")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in (
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
}

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def python_files() -> Iterator[Path]:
    yield from ROOT.glob("*.py")
    for folder in CODE_FOLDERS:
        yield from (ROOT / folder).rglob("*.py")


def direct_dependencies() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    return [Requirement(line) for line in PROJECT["dependencies"] + [x for e in INSTALLED_EXTRAS for x in extras[e]]]


@document
def test_internal_links_lead_somewhere(path: Path):
    targets = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    internal = [t.partition("#")[0] for t in targets if not t.startswith(("http:", "https:", "mailto:", "#"))]
    missing = [t for t in internal if not (path.parent / t).exists()]
    assert not missing


@document
def test_make_targets_that_are_named_exist(path: Path):
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|&& )make ([a-z][a-z-]*)", path.read_text(), re.MULTILINE))
    assert named <= targets


@document
def test_entry_points_and_experiments_that_are_named_exist(path: Path):
    text = path.read_text()
    scripts = set(re.findall(r"python (\w+\.py)", text))
    experiments = set(re.findall(r"experiment=([\w-]+/[\w-]+)", text))
    missing = [s for s in scripts if not (ROOT / s).is_file()]
    missing += [e for e in experiments if not (ROOT / "conf/experiment" / f"{e}.yaml").is_file()]
    assert not missing


def test_group_options_of_the_readme_exist():
    """`process/schedule=cosine,linear` names options; `seed=1,2,3` and `ckpt=CKPT` name none."""
    commands = re.findall(r"^(?:python \w+\.py).*", (ROOT / "README.md").read_text(), re.MULTILINE)
    choices = [choice for line in commands for choice in re.findall(r"\s([a-z_]+(?:/[a-z_]+)?)=([\w,]+)(?=\s|$)", line)]
    groups = [(g, option) for g, options in choices if g in all_groups() for option in options.split(",")]
    assert ("process/schedule", "cosine") in groups, "the pattern no longer finds what it is to check"
    missing = [f"{g}={option}" for g, option in groups if option not in group_nodes(g)]
    assert not missing


def test_constraints_pin_every_direct_dependency_within_its_range():
    for requirement in direct_dependencies():
        pin = PINS.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} is pinned to {pin}"


def test_pins_name_no_build():
    """`2.13.0+cpu` would refuse every other build of the same torch."""
    assert not {name: version for name, version in PINS.items() if Version(version).local}


def test_every_import_is_a_declared_dependency():
    """What arrives only because something else needs it may leave with that something."""
    declared = {canonicalize_name(r.name) for r in direct_dependencies()} | {"trilemma"}
    providers = packages_distributions()
    modules = [*ROOT.glob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    own = {path.stem for path in modules} | {"tests", "load_cifar10"}  # the last lies beside the development data
    undeclared = set()
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module
                else []
            )
            for module in {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names:
                if not declared & {canonicalize_name(d) for d in providers.get(module, [])}:
                    undeclared.add(f"{path.relative_to(ROOT)}: {module}")
    assert not undeclared


def test_one_lightning_namespace():
    """Ruff sees Python imports; a `_target_` in YAML or a line in a document it does not see."""
    twin = "pytorch" + "_lightning"
    files = [*python_files(), *(ROOT / "conf").rglob("*.yaml"), *DOCUMENTS]
    assert [str(f.relative_to(ROOT)) for f in files if twin in f.read_text()] == []


def test_versions_agree():
    version = PROJECT["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()
    assert f'__version__ = "{version}"' in (ROOT / "src/trilemma/__init__.py").read_text()


def test_nothing_names_a_package_index():
    """Where packages come from is the machine's affair."""
    for name in ("constraints.txt", "pyproject.toml", "Makefile"):
        assert not re.search(r"index-url|find-links|https?://", (ROOT / name).read_text()), name
