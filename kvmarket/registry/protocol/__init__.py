"""The protocol between engines and the service: addresses, packets, messages, and their sequence numbers."""
