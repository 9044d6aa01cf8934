"""Who calls: service accounts by their tokens, and what they may have."""
