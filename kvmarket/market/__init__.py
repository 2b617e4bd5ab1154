"""The market as an engine sees it: the facade, its control half and its data half, and what these are made of."""
