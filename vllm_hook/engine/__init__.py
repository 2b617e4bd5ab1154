"""What an engine of vLLM is: its facts, what it cannot do, and what differs between versions of vLLM."""
