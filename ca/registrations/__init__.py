"""Which agent may ask for which identity on the standalone platform: the file, its rules, its changes, the verdict."""
