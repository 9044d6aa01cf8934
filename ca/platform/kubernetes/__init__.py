"""The Kubernetes platform: the API server stands behind every port. Nobody else imports its client."""
