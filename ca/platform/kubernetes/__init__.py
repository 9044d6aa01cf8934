"""The Kubernetes platform: adapters of the CA's ports to the API server. No other package of the CA imports its client.

api/         a client on plain JSON, and a reflector          callers/    who calls, and what they may have
roots/       the authority in its secrets, roots for pods     secrets/    the secrets of service accounts
requests/    Kubernetes' own certificate requests             leader/     who leads, and what the leader does
events/      what happened to an object, told on it           platform.py puts all of it together
"""
