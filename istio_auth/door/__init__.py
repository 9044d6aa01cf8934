"""The door: listeners that learn who calls (TLS or Unix peer) before a server sees a byte; the portal for clients."""

from istio_auth.door.callers import Caller, ProcessHandle, TLSCaller, UnixCaller
from istio_auth.door.door import Door
from istio_auth.door.portal import Portal
from istio_auth.door.register import DoorLimits

__all__ = ["Caller", "Door", "DoorLimits", "Portal", "ProcessHandle", "TLSCaller", "UnixCaller"]
