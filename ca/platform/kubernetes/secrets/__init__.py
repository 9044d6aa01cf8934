"""The secrets of service accounts at the API server."""
