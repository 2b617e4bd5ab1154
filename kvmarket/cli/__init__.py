"""The command line: ``kvmarket demo | serve | doctor | top``, one module each."""

from __future__ import annotations


def main() -> None:
    """Run the command line. Imports what that needs only now, when `__main__` has set the search path right."""
    from kvmarket.cli.app import run

    run()
