"""All attestors together: what is seen under a process id counts only while the process is the same."""

from __future__ import annotations

import pytest

from istio_auth.door import UnixCaller
from istio_auth.errors import NotAuthenticated
from istio_auth.registration import Selector
from node_agent.attest import attest_all
from node_agent.attest.socket import SocketAttestor
from node_agent.attest.unix import UnixAttestor

OUT_OF_SIGHT = UnixCaller(1000, 1000, 0, "pod-1")  # in a pid namespace that can not be seen from here


async def test_a_caller_that_only_its_socket_tells_of_need_not_be_in_sight() -> None:
    assert await attest_all([SocketAttestor()], OUT_OF_SIGHT) == {Selector("socket", "pod-1")}


async def test_a_caller_of_whom_more_is_told_must_be_in_sight() -> None:
    with pytest.raises(NotAuthenticated, match="can not be seen from here: an agent in a pod needs hostPID"):
        await attest_all([UnixAttestor(), SocketAttestor()], OUT_OF_SIGHT)
