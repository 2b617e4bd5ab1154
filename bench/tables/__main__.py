"""``python -m bench.tables``: write the tables of the documentation anew, from ``bench/results/``."""

from bench.tables.pages import main

if __name__ == "__main__":
    main()
