"""Random histories of a market in one process: real control halves and a real exchange, over connections that fail.

Messages are dropped, delayed, doubled, reordered and torn in both directions, queues are full, services die. After
every step each block that an engine would take as valid must be what its owner has in that slot. `test_histories.py`
runs some hundreds, ``python -m tests.histories --runs 1000000`` as many as wanted.
"""
