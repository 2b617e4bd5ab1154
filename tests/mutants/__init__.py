"""Mutation testing: small faults are put into the core one at a time, and for each the fast tests of its module run.

``python -m tests.mutants`` (or ``make mutants``) makes a *mutant* of each statement or expression that an operator fits
(``operators`` in expressions.py and statements.py): ``<`` becomes ``<=``, two statements change places, a call is left
out. A mutant whose tests fail is *killed*; one whose tests take far longer than on the unchanged code is a *hang*,
which counts as killed. A mutant that no test notices *survives*: either a test is missing, or the mutant is harmless,
and then harmless.toml names it with the reason. The command prints the survivors that harmless.toml does not name, and
ends with 1 if there is one, or if harmless.toml names a mutant that the code no longer has.

    python -m tests.mutants --list --only pool/slots.py     # the mutants of one module
    python -m tests.mutants --only pool/slots.py            # run them
    python -m tests.mutants --only kvmarket/market/offer.py:85:12:compare:1
    python -m tests.mutants --sample 300 --seed 1           # 300 of all, the same ones each time
    python -m tests.mutants --since main                    # those on lines changed since a commit

How it works: targets.toml says which tests each module has. One process imports what those tests import, but nothing
of this project, and forks a child for each mutant (processes.py), which then needs no time to import torch. The child
writes the mutated source of its one module into a folder of its own, and an import hook (startup/sitecustomize.py)
loads it instead of the module. Python processes that the tests start find the same hook on their path, so that they run
the mutant too. What the child started is ended with it.

Not mutated: docstrings, annotations (except the bounds in ``msgspec.Meta``), texts of errors and of the log, reasons
of counters, asserts and ``_check``, imports, floats, and code that runs only on a GPU.
"""
