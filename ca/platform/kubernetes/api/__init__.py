"""The API server: a client on plain JSON, its refusals, and a reflector."""
