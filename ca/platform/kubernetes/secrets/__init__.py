"""The secrets of service accounts at the API server: watched, read and written."""
