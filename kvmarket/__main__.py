"""``python -m kvmarket`` runs the same command line as ``kvmarket``."""

from __future__ import annotations

import sys

if not getattr(sys.flags, "safe_path", False):
    sys.path.append(sys.path.pop(0))  # the current directory comes last: a file numpy.py there must not hide numpy

from kvmarket.cli import main

main()
