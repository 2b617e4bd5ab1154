"""An engine's membership: its connection, the service it may have to start, and a replica of the offers."""
