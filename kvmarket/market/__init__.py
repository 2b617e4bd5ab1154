"""The engine's side of a market: the facade, and its two halves, control (tokens, offers) and data (memory, copies)."""
