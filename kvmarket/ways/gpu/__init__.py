"""The ways of a GPU, each a module and a line of the list in `mover`, and what they are made of.

Nothing is handed on here: `mover` needs Triton, which a machine without GPUs may lack; `copy_engine` does not.
"""
