"""What both daemons need of gRPC: the status table, the server factory behind the door, the client channel."""

import contextvars

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the request being answered; empty outside of one."""
