"""The folder that is put on the path of Python processes which run a mutant."""
