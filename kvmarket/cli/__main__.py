"""``python -m kvmarket.cli`` is ``kvmarket``."""

from __future__ import annotations

import sys

if not getattr(sys.flags, "safe_path", False):
    sys.path.append(sys.path.pop(0))  # the current directory: a file numpy.py there is not the one that is meant

from kvmarket.cli import main

main()
