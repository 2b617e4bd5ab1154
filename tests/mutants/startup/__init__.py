"""This folder is on the import path of Python processes that run a mutant: Python imports sitecustomize.py."""
