"""Events: what happened to an object, told on it."""
