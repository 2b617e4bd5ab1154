"""The ways of a GPU, their mover, and its parts. Each way is one module and one line of the list in `mover`.

Import from the modules: `mover` needs Triton, which a machine without GPUs may lack; `copy_engine` does not.
"""
