"""The authority in its secrets, and its roots published where pods find them."""
