"""What a lender keeps: blocks that other engines computed, in memory that nobody needs now."""
