"""The command line: ``kvmarket demo | serve | doctor | top``, one module each."""

from __future__ import annotations


def main() -> None:
    """Run the command line. Its imports are made here, after `__main__` has corrected the search path."""
    from kvmarket.cli.app import run

    run()
