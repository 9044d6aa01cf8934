"""gRPC for both daemons: the table of statuses, the server behind the door, the client channels."""

import contextvars

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
"""The id of the request being answered; empty outside of one."""
