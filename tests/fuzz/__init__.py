"""Fuzzing of every message that the service and the engines read: `python -m tests.fuzz`; short runs in the tests."""
