"""A worker's side: its pages, the weights that computed them, and loads under way."""
