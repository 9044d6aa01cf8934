"""What a certificate is made of, twice: built from constant parts, and read back by code that shares none of it."""
