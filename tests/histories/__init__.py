"""Random histories of a market in one process: real control halves and a real service's exchange over wires that fail.

Messages are dropped, delayed, doubled, reordered and torn on every hop, queues are full, services die; after every step
whatever an engine would take for valid must be what its owner has in that slot. `test_histories.py` runs some hundreds,
``python -m tests.histories --runs 1000000`` as many as wanted.
"""
