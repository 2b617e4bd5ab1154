"""What a lender would bring: simulations over recorded requests, and measurements."""
