"""The authority in its secrets, and its roots where pods find them."""
