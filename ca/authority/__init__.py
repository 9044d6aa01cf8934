"""The authority: which issuer signs, where its state is kept, its own end, and issuers that somebody else made."""
