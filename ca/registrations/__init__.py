"""Which agent may ask for which identity: the registrations file, its rules, its changes, and the registry over it."""
