"""What travels between engines and the service: messages, packets, numbers on them, addresses."""
