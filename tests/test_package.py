"""What is installed: the two packages, of the version that the changes speak of, and all that the commands need."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import kvmarket

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("kvmarket", "vllm_hook")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked. The setuptools that is here builds it: nothing is fetched, nothing left in the checkout."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    for name in ("pyproject.toml", "README.md", "LICENSE", "tests", "bench", "examples", *PACKAGES):
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-c", BUILD, str(built)]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(next(built.glob("*.whl"))) as archive:
        archive.extractall(built / "site")
    return built / "site"


def test_the_version_is_said_once_and_its_changes_are_told():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{kvmarket.__version__}"\n' in project
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == kvmarket.__version__


def test_every_folder_with_modules_is_a_package():
    """Else the wheel would go without it."""
    for package in PACKAGES:
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_types_are_shown_to_whoever_imports_it():
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)


def test_the_wheel_has_every_module_of_the_two_packages_and_nothing_else(wheel: Path):
    modules = {path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    found = {path.relative_to(wheel) for path in wheel.rglob("*") if path.is_file()}
    of_wheel = {path for path in found if path.parts[0] == f"kvmarket-{kvmarket.__version__}.dist-info"}
    assert found - of_wheel == modules | {Path(package) / "py.typed" for package in PACKAGES}


def test_the_wheel_brings_the_command_and_the_plugin(wheel: Path):
    installed = metadata.Distribution.at(next(wheel.glob("*.dist-info")))
    assert installed.version == kvmarket.__version__
    points = {(point.group, point.name): point.value for point in installed.entry_points}
    assert points == {
        ("console_scripts", "kvmarket"): "kvmarket.cli:main",
        ("vllm.general_plugins", "kvmarket"): "vllm_hook.plugin:register",
    }


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--lend"]], ids=["", "lend"])
def test_the_demo_needs_no_checkout(wheel: Path, tmp_path: Path, more: list[str]):
    command = [sys.executable, "-m", "kvmarket.cli", "demo", "--device", "cpu", "--tokens", "200", *more]
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and "outputs identical" in run.stdout, run.stdout + run.stderr
