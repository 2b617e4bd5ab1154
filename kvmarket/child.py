"""Other Python processes of ours: they import what this one can."""

from __future__ import annotations

import os
import sys


def environment() -> dict[str, str]:
    """This process' environment, with its ``sys.path`` for whoever runs our code in a process of its own."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
