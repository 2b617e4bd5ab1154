"""The service of a market: its members, what it hears of them, and what it tells all others."""
