"""Sources in a process that was forked while other threads were in the middle of something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from istio_auth import write_svid
from tests.fakes.svid_folder import generation

# The threads of pytest itself would be in the way of a fork: each of these programs is a process of its own.
_BEGIN = """
import asyncio, gc, os, signal, sys, threading, weakref
from datetime import timedelta
from pathlib import Path

from istio_auth import FileSource, MemorySource, NotReady, write_svid
from tests.fakes.svid_folder import generation

OFTEN, PATIENCE = timedelta(milliseconds=10), timedelta(seconds=60)
folder = Path(sys.argv[1])
signal.alarm(100)

def in_child(work):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(90)
            work()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid

def ended_well(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

def polling():
    return [thread.name for thread in threading.enumerate() if thread.name == "istio-auth files"]
"""

_FOLLOWS = """
source = FileSource(folder, interval=OFTEN)
first = source.svid()

def child():
    assert polling() == []
    assert source.svid() == first
    assert len(polling()) == 1
    changed = threading.Event()
    source.subscribe(changed.set)
    assert changed.wait(60)
    assert source.svid().id != first.id
    source.close()
    assert polling() == []

pid = in_child(child)
write_svid(folder, generation(2))
ended_well(pid)
source.wait_until_ready(PATIENCE)
assert len(polling()) == 1
source.close()
"""

_LOCKED = """
source, memory = FileSource(folder, interval=OFTEN), MemorySource(generation(1))
held, go_on = threading.Event(), threading.Event()

def hold():
    held.set()
    go_on.wait()

source.subscribe(hold)
write_svid(folder, generation(2))
assert held.wait(60)  # the thread is in the middle of a look now

def hold_locks():
    with (
        source._changes._condition,
        memory._changes._condition,
        source._changes._subscribers._lock,
        memory._changes._subscribers._lock,
    ):
        held.set()
        go_on.wait()

held.clear()
threading.Thread(target=hold_locks, daemon=True).start()
assert held.wait(60)

def child():
    global source
    go_on.set()
    source.wait_until_ready(PATIENCE)
    source.subscribe(lambda: None)()
    assert source.reload().ready
    memory.replace(generation(3))
    memory.wait_until_ready(PATIENCE)
    source.close()
    del source
    gc.collect()
    memory.close()

pid = in_child(child)
ended_well(pid)
go_on.set()
source.close()
"""

_LOOPS = """
source = FileSource(folder, interval=OFTEN)

async def parent():
    updates = source.updates()
    await anext(updates)

    async def follow():
        await source.ready(PATIENCE)
        assert (await anext(source.updates())).svid == source.svid()

    def child():
        asyncio._set_running_loop(None)
        asyncio.run(follow())
        source.close()

    ended_well(in_child(child))
    write_svid(folder, generation(2))
    async with asyncio.timeout(60):
        assert (await anext(updates)).svid == source.svid()
    await updates.aclose()

asyncio.run(parent())
source.close()
"""

_CLOSED = """
source, other = FileSource(folder, interval=OFTEN), FileSource(folder, interval=OFTEN)
source.close()

def child():
    other.close()
    try:
        source.svid()
    except NotReady as error:
        assert "closed" in str(error)
    assert polling() == []

ended_well(in_child(child))
assert other.svid()
other.close()
"""


_FORGOTTEN = """
from istio_auth.sources import files
files._SETTLE = 86400  # so that the thread waits, and holds nothing
source = FileSource(folder)

def child():
    global source
    gone = weakref.ref(source)
    del source
    gc.collect()
    assert gone() is None

ended_well(in_child(child))
assert source.reload().ready
source.close()
"""

_READS = """
from istio_auth.sources import files, quiet
began, may_end, under_way, read = threading.Event(), threading.Event(), [], files.svid_in

def slow(*arguments):
    under_way.append("a read")
    began.set()
    may_end.wait()
    try:
        return read(*arguments)
    finally:
        under_way.pop()

source = FileSource(folder, interval=OFTEN)
files.svid_in = slow

def child():
    files.svid_in = read
    assert source.reload().ready
    assert under_way == ([] if may_end.is_set() else ["a read"])

write_svid(folder, generation(2))
assert began.wait(60)
quiet._PATIENCE = 0.01
ended_well(in_child(child))  # a read that does not end is not waited for

quiet._PATIENCE = 20
threading.Timer(0.05, may_end.set).start()
ended_well(in_child(child))
source.close()
"""

_WOKEN = """
memory = MemorySource(generation(1))

async def parent():
    loop, woken = asyncio.get_running_loop(), []
    updates = memory.updates()
    await anext(updates)
    loop._process_self_data = woken.append  # by what other threads wake it
    ended_well(in_child(lambda: memory.replace(generation(2))))
    for _ in range(3):
        await asyncio.sleep(0)
    assert woken == []
    memory.replace(generation(2))
    for _ in range(3):
        await asyncio.sleep(0)
    assert woken != []
    await updates.aclose()

asyncio.run(parent())
"""

PROGRAMS = {
    "the child follows the files": _FOLLOWS,
    "locks were held": _LOCKED,
    "a loop was running": _LOOPS,
    "the parent's loop sleeps": _WOKEN,
    "it was closed": _CLOSED,
    "the child does not want it": _FORGOTTEN,
    "its thread was reading": _READS,
}


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_forked_child_has_working_sources_and_leaves_those_of_its_parent_alone(tmp_path: Path, program: str) -> None:
    write_svid(tmp_path, generation(1))
    # Newer Pythons warn of what is tried here: a fork where there are threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _BEGIN + program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
