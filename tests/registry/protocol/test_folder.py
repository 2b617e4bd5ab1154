"""Whose alone the folder of a market is, in a real container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kvmarket.registry.protocol.folder import whose
from tests.container import apart

SAYS = (
    "import sys, pathlib; from kvmarket.registry.protocol.folder import whose; print(whose(pathlib.Path(sys.argv[1])))"
)
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.skipif(apart() is None, reason="this user may make no namespaces")
@pytest.mark.parametrize(
    ("mounts", "folder", "says"),
    [
        ("mount -t tmpfs none /tmp", "/tmp/kvmarket-1", "in this container's own file system"),
        ("mount -t tmpfs none /tmp && mkdir /tmp/shared && mount -t tmpfs none /tmp/shared", "/tmp/shared/s", ""),
    ],
)
def test_a_container_with_a_tmp_of_its_own(mounts: str, folder: str, says: str):
    command = [*(apart() or ()), "sh", "-c", f'{mounts} && exec "$@"', "sh", sys.executable, "-c", SAYS, folder]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == says


def test_a_folder_that_cannot_be_looked_at(tmp_path: Path):
    (tmp_path / "loop").symlink_to("loop")
    assert whose(tmp_path / "loop") == ""
