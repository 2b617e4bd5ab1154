"""The service of a market: it keeps the members and their offers, and sends every change to all other members."""
