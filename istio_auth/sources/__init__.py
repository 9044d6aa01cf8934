"""Where SVIDs and bundles come from: one module for each kind of source, and their common parts."""
