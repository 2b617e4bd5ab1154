"""What is installed: the two packages, of the version that the changes speak of."""

from __future__ import annotations

import re
from pathlib import Path

import kvmarket

ROOT = Path(__file__).resolve().parents[1]


def test_the_version_is_said_once_and_its_changes_are_told():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'\nversion = "{kvmarket.__version__}"\n' in project
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == kvmarket.__version__


def test_every_folder_with_modules_is_a_package():
    """Else the wheel would go without it."""
    for package in ("kvmarket", "vllm_hook"):
        folders = {path.parent for path in (ROOT / package).rglob("*.py")}
        assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_types_are_shown_to_whoever_imports_it():
    assert all((ROOT / package / "py.typed").exists() for package in ("kvmarket", "vllm_hook"))
