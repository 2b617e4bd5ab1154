"""The scheduler's side: what is offered and imported, and what each step means for that."""
