"""``kvmarket doctor``: what this machine can do for a market, each finding with what to do."""
