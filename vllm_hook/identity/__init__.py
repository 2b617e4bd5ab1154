"""Identifies an engine: by the content of its weights, by the source of its model's code, and by its configuration.

Weights: naming.py (tensors.py, loads.py, files.py, group.py). Code: code.py. Configuration: configuration.py; the
fields that do not count are in harmless.py, those that do in counted.py; environment variables in environment.py.
"""
