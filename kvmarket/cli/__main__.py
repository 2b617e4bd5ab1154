"""``python -m kvmarket.cli`` is ``kvmarket``."""

from __future__ import annotations

from kvmarket.cli import main

main()
