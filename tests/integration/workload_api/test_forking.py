"""A process that forks while it follows a Workload API: both go on, or the child is refused and told why."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import pytest

from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.rpc.blocking import BlockingChannel
from istio_auth.strict_json import JSON
from tests.fakes import workload_api as fake
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.workload_api import FakeWorkloadAPI
from tests.vectors.x509_svid import LOCAL

BUNDLE = LOCAL.bundle()
WEB = "spiffe://cluster.local/web"


@contextmanager
def program(api: FakeWorkloadAPI, how: str) -> Iterator[Callable[[], str]]:
    """The forking program; gives its lines one by one, and ends well."""
    api.x509.say(fake.x509(fake.entry(LOCAL.svid(), BUNDLE)))
    command = [sys.executable, "-m", "tests.integration.workload_api.forking", how]
    environment = os.environ | {"SPIFFE_ENDPOINT_SOCKET": api.address}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout
        yield lambda: output.readline().rstrip("\n")
        rest = output.read()
    assert (process.returncode, rest) == (0, "")


def test_the_child_follows_by_itself_and_the_parent_goes_on(api: FakeWorkloadAPI) -> None:
    with program(api, "follow") as line:
        for name in ("of-the-child", "of-the-parent"):
            assert line() == "waiting"
            renewed = LOCAL.svid(f"/{name}")
            api.x509.say(fake.x509(fake.entry(renewed, BUNDLE)))
            assert line() == str(renewed.id)


def test_jwt_svids_and_their_bundles_go_on_in_both(api: FakeWorkloadAPI) -> None:
    issuers = [TokenIssuer(place=place) for place in (0, 1, 2)]

    def svid(request: messages.JWTSVIDRequest, _context: fake.Context) -> messages.JWTSVIDResponse:
        payload: dict[str, JSON] = {"sub": WEB, "aud": [*request.audience], "exp": int(time.time()) + 600}
        return messages.JWTSVIDResponse(svids=[messages.JWTSVID(spiffe_id=WEB, svid=issuers[0].sign(payload))])

    api.jwt_svids = svid
    api.jwt_bundles.say(fake.jwt_bundles({"cluster.local": issuers[0]}))
    with program(api, "tokens") as line:
        assert line() == "waiting"
        api.jwt_bundles.say(fake.jwt_bundles({"cluster.local": issuers[1]}))
        assert line() == f"{issuers[1].key_id} other"
        assert line() == "waiting"
        api.jwt_bundles.say(fake.jwt_bundles({"cluster.local": issuers[2]}))
        assert line() == f"{issuers[2].key_id} other"


def test_a_process_that_forks_many_times_never_hangs_or_crashes(api: FakeWorkloadAPI) -> None:
    with program(api, "many") as line:
        assert line() == f"{{'{LOCAL.svid().id}'}}"


def test_a_child_of_a_process_where_others_use_grpc_is_refused_and_told_why(api: FakeWorkloadAPI) -> None:
    with program(api, "foreign") as line:
        assert "was forked while its parent used gRPC" in line()


def test_a_child_of_an_event_loop_that_uses_grpc_is_refused_and_its_parent_goes_on(api: FakeWorkloadAPI) -> None:
    with program(api, "asynchronous") as line:
        assert "was forked while its parent used gRPC" in line()
        assert line() == str(LOCAL.svid().id)


def test_a_child_that_uses_nothing_or_closes_everything_ends_well(api: FakeWorkloadAPI) -> None:
    with program(api, "unused") as line:
        assert line() == "nothing"
        assert "is closed" in line()
        assert line() == str(LOCAL.svid().id)


@pytest.mark.parametrize("closed", [False, True])
def test_a_child_waits_for_nothing_that_a_thread_of_its_parent_held(*, closed: bool) -> None:
    with BlockingChannel("unix:///nowhere") as channel:
        if closed:
            channel.close()
        with channel._closed._cond:  # type: ignore[attr-defined]  # as a thread may that waits at that moment
            channel.after_fork()
            answers: list[bool] = []
            thread = threading.Thread(target=lambda: answers.append(channel.closed_within(timedelta())), daemon=True)
            thread.start()
            thread.join(60)
            assert answers == [closed]
