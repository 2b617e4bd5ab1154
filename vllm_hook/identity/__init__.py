"""What an engine is: by the content of its weights and of the code of its model, and by its configuration.

Weights: naming.py (tensors.py, loads.py, files.py, group.py). Code: code.py. Configuration: configuration.py, with the
fields that do not count in harmless.py, those that do in counted.py, and what the environment adds in environment.py.
"""
