"""``python -m bench.tables``: rewrite the tables of the documentation from ``bench/results/``."""

from bench.tables.pages import main

if __name__ == "__main__":
    main()
