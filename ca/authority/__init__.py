"""The authority: which issuer signs, what is kept of it and where, its own end, and authorities that others made."""
