"""Where SVIDs and bundles come from: one module for each kind of `X509Source`."""
