"""The worker side: a rank's pages, the weights that computed them, and loads in flight."""
