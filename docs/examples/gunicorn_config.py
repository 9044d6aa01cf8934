"""WSGI under gunicorn (Flask, Django): `gunicorn --config gunicorn_config.py gunicorn_config:app`.

The source is opened before the workers are forked, and follows its files in each of them.
"""

import ssl
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from istio_auth import FileSource, SpiffeID, is_id, peer_id, server_context

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")
CONTEXT = server_context(FileSource("/etc/certs"), is_id(CLIENT))

bind = "127.0.0.1:8443"
workers = 2
certfile = "/dev/null"  # gunicorn asks for a context only if it is told of a file, which nobody reads then


def ssl_context(_config: object, _default: object) -> ssl.SSLContext:
    """The context, asked for at each connection."""
    return CONTEXT


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Tell each caller who it is."""
    caller = peer_id(environ["gunicorn.socket"])
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{caller}\n".encode()]
