"""The engine's side of the registry: its connection, its replica of all offers, and the start of the service."""
