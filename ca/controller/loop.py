"""SecretController: keeps the secret of every service account as the plan wants it. The I/O around `plan_one`.

    a change, a due date, or a look at everything -> key -> decide -> act -> decide again -> nothing to do

Each service account is decided for itself, by any worker that is free. A failure costs this account a wait that
doubles, and the others nothing. A restart loses nothing: decisions follow from what is in the cluster, not from memory.

It writes only as the leader, and checks right before each write that it still leads. A write that goes out too late all
the same is refused by the API server, for it carries the version that it was planned for. When cancelled it abandons
what it is doing: the next leader finds the secret written, or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NoReturn

import structlog

from ca.authority.authority import Authority
from ca.authority.state import AuthorityState
from ca.controller.action import Action, Concern, Kind, Subject
from ca.controller.contention import Contention
from ca.controller.namespaces import Scope
from ca.controller.pairs import PairMaker
from ca.controller.plan import Decision, plan_one
from ca.controller.report import Reports
from ca.controller.settings import Settings
from ca.controller.sink import Content, Pair, SecretSink
from ca.controller.snapshot import AccountKey, Desired, secret_name
from ca.controller.tally import Present, Standing, Tally
from ca.controller.view import Snapshots, View
from ca.controller.work_queue import Agenda, Attempts, WorkQueue
from istio_auth.clock import Clock
from istio_auth.errors import ConflictError, IstioAuthError, NotReady
from istio_auth.rotation import remaining_share

_READY = 4  # service accounts that are worked on at once, for each secret that may be written at once
_FRESH = 0.9  # the share of its life that a pair must still have to be written; a long refusal may have cost the rest
_STEPS = 5  # decisions about one service account in a row; two are usual
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast the controller goes.

    Args:
        workers: how many secrets are written at once. Several times as many are prepared meanwhile: a signature waits
            for its record on the disk, and the API server should not have to wait for either.
        resync: how often everything is looked at, whether or not a change was heard of.
        first_retry: the wait after the first failure; it doubles with each one.
        longest_retry: the longest wait after a failure.
        look: how often to look for what is due: often, so that a jump of the clock is noticed soon.
    """

    workers: int = 8
    resync: timedelta = timedelta(minutes=10)
    first_retry: timedelta = timedelta(seconds=0.5)
    longest_retry: timedelta = timedelta(minutes=5)
    look: timedelta = timedelta(seconds=0.25)


DEFAULT_PACE = Pace()


@dataclass(frozen=True, slots=True)
class _Standard:
    """What every secret shall be, and the bundle to put into it, in one state of the authority."""

    state: AuthorityState
    desired: Desired
    root: bytes

    @classmethod
    def of(cls, state: AuthorityState) -> _Standard:
        return cls(state, Desired.of(state), state.bundle().to_pem())


@dataclass(frozen=True, slots=True)
class _Made:
    """A pair that was made, but is not yet known to be in its secret.

    Args:
        standard: what every secret had to be when the pair was made.
        action: the action that it was made for.
        pair: the pair.
    """

    standard: _Standard
    action: Action
    pair: Pair

    def suits(self, action: Action, standard: _Standard, now: datetime) -> bool:
        """Whether it is as good as a new one would be."""
        material = self.pair.material
        is_fresh = remaining_share(material.not_before, material.not_after, now) >= _FRESH
        return self.standard is standard and self.action == action and is_fresh


class SecretController:
    """Looks after the secrets, while it runs. Lives on one event loop.

    Args:
        snapshots: what is in the cluster.
        sink: writes secrets.
        authority: decides what they shall be.
        pairs: makes keys and certificates.
        reports: tells people.
        settings: what the operator decides.
        clock: tells the time.
        leading: whether this process leads at this instant.
        tally: counts.
        pace: how fast it goes.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        sink: SecretSink,
        authority: Authority,
        *,
        pairs: PairMaker,
        reports: Reports,
        settings: Settings,
        clock: Clock,
        leading: Callable[[], bool],
        tally: Tally,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self._snapshots = snapshots
        self._sink = sink
        self._authority = authority
        self._pairs = pairs
        self._reports = reports
        self._settings = settings
        self._clock = clock
        self._leading = leading
        self._tally = tally
        self._pace = pace
        self._standard = _Standard.of(authority.state)
        self._begin()

    @property
    def idle(self) -> bool:
        """Whether everything was looked at, and nothing is left to do at the moment."""
        return self._looked and self._queue.idle

    def present(self) -> Present:
        """How the secrets are now, for metrics; nothing while this does not run."""
        return Present(lambda: list(self._standing.values()), lambda: len(self._queue))

    def degraded(self) -> str | None:
        """Why somebody should look; None if all is well."""
        fights = [key for key, each in self._standing.items() if each.concern is Concern.CONTENDED]
        if not fights:
            return None
        one = f"{fights[0][0]}/{secret_name(fights[0][1])}"
        return f"{len(fights)} secrets are left alone, for somebody keeps changing them back, as {one}"

    async def run(self) -> NoReturn:
        """Look after the secrets until cancelled."""
        await self._snapshots.until_synced()
        self._begin()
        ends = (
            self._snapshots.subscribe(self._changed),
            self._authority.subscribe(_on_loop(self._look_at_everything)),
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._pace.workers * _READY):
                    tasks.create_task(self._queue.work_off(self._look_after))
                tasks.create_task(self._resync())
                await self._watch_the_time()
        finally:
            for end in ends:
                end()
            self._begin()

    def _begin(self) -> None:
        """Forget everything: it may be from an earlier term, and another leader may have worked since."""
        self._looked = False
        self._writing = asyncio.Semaphore(self._pace.workers)
        self._queue = WorkQueue[AccountKey]()
        self._agenda = Agenda[AccountKey]()
        self._view = View(self._snapshots)
        self._contention = Contention[tuple[AccountKey, str]]()
        self._standing: dict[AccountKey, Standing] = {}
        self._attempts = Attempts[AccountKey](self._pace.first_retry, self._pace.longest_retry)
        self._wrote: dict[AccountKey, str] = {}  # the version of what we wrote; empty if we deleted it
        self._made: dict[AccountKey, _Made] = {}

    def _changed(self, key: AccountKey) -> None:
        if self._view.notice(key):
            self._queue.add(key)

    def _look_at_everything(self) -> None:
        self._contention.left_alone(self._clock.now())
        for key in {*self._snapshots.keys(), *self._standing}:
            self._queue.add(key, urgent=False)
        self._looked = True

    async def _resync(self) -> NoReturn:
        while True:
            self._view.doubt()
            self._look_at_everything()
            await asyncio.sleep(self._pace.resync.total_seconds())

    async def _watch_the_time(self) -> NoReturn:
        while True:
            for key in self._agenda.take(self._clock.now()):
                self._queue.add(key, urgent=False)
            await asyncio.sleep(self._pace.look.total_seconds())

    async def _look_after(self, key: AccountKey) -> None:
        """Do what one service account needs, and have it looked at again when it next needs something."""
        action: Action | None = None
        try:
            if self._view.doubts(key):
                await self._look(key)
            for _ in range(_STEPS):
                decision = self._decide(key)
                if (action := decision.action) is None or self._gives_way(key, action):
                    self._settled(key, decision if action is None else self._decide(key))
                    return
                await self._act(key, action)
            raise NotReady("it does not become what it shall be")
        except _NotLeading:
            self._again(key, _NotLeading("another one leads by now"))
        except IstioAuthError as error:
            self._failed(key, action, error)
        except Exception as error:  # noqa: BLE001  # a bug that one secret meets must not stop the others
            _log.exception("a secret could not be looked after", namespace=key[0], service_account=key[1])
            self._failed(key, action, IstioAuthError(f"a fault of this CA's own ({type(error).__name__})"))

    def _decide(self, key: AccountKey) -> Decision:
        now, account = self._clock.now(), self._snapshots.account(key)
        return plan_one(
            account,
            self._view.secret(key),
            scope=self._scope(key),
            desired=self._current().desired,
            now=now,
            settings=self._settings,
            left_alone_until=None if account is None else self._contention.until((key, account.uid), now),
        )

    def _scope(self, key: AccountKey) -> Scope:
        return self._settings.namespaces.scope(key[0], self._snapshots.namespace(key[0]))

    def _current(self) -> _Standard:
        if self._standard.state is not (state := self._authority.state):
            self._standard = _Standard.of(state)
        return self._standard

    def _gives_way(self, key: AccountKey, action: Action) -> bool:
        """Whether somebody has changed the secret back so often that it is left alone from now on."""
        uid, found = action.subject.account_uid, action.precondition.resource_version if action.precondition else ""
        if self._wrote.get(key, found) == found:
            return False  # nobody changed it since our write: it is we who want something else now
        self._wrote[key] = found  # each change counts once
        return self._contention.note((key, uid), self._clock.now()) is not None

    async def _act(self, key: AccountKey, action: Action) -> None:
        """Do one action; if the secret is no longer what it was planned for, only look at it again."""
        content = None
        if action.kind is not Kind.DELETE:
            content = await self._content(key, action)
        async with self._writing:
            if not self._leading():
                raise _NotLeading("another one leads by now")
            shown = self._view.shown(key)
            try:
                secret = await self._sink.apply(action, content)
            except ConflictError:
                await self._look(key)
                return
        self._view.learn(key, secret, shown=shown)
        self._done(key, action, "" if secret is None else secret.resource_version)

    async def _content(self, key: AccountKey, action: Action) -> Content:
        root = self._current().root
        return Content(root, await self._pair(key, action, root) if action.kind.issues else None)

    async def _pair(self, key: AccountKey, action: Action, root: bytes) -> Pair:
        """A new pair, or one made earlier for the same action that could not be written and is still good."""
        made, standard = self._made.get(key), self._current()
        if made is None or not made.suits(action, standard, self._clock.now()):
            made = self._made[key] = _Made(standard, action, await self._pairs.make(action, root))
        return made.pair

    async def _look(self, key: AccountKey) -> None:
        shown = self._view.shown(key)
        self._view.learn(key, await self._sink.look(key), shown=shown)

    def _done(self, key: AccountKey, action: Action, version: str) -> None:
        self._made.pop(key, None)
        self._tally.written[action.kind, action.reason] += 1
        standing = self._standing.get(key)
        if action.kind is Kind.CREATE and standing is not None and standing.ends is not None:
            self._tally.remade += 1
        self._wrote[key] = version
        if not action.kind.issues:  # otherwise the audit has logged the certificate
            _log.info("secret written", kind=action.kind.value, secret="/".join(key), reason=action.detail)

    def _settled(self, key: AccountKey, decision: Decision) -> None:
        self._attempts.forget(key)
        self._made.pop(key, None)
        if decision.finding is None:
            self._reports.well(key)
        else:
            self._reports.finding(key, decision.finding)
        if decision.due is None:
            self._agenda.drop(key)
        else:
            self._agenda.put(key, decision.due)
        concern = None if decision.finding is None else decision.finding.concern
        self._stand(key, Standing(decision.ends, decision.due, concern))

    def _failed(self, key: AccountKey, action: Action | None, error: IstioAuthError) -> None:
        kind = None if action is None else action.kind
        self._tally.failed[kind, error.code] += 1
        self._again(key, error)
        account = self._snapshots.account(key)
        subject = Subject(*key, "" if account is None else account.uid, secret_name(key[1]))
        self._reports.failure(key, subject, kind, error)
        standing = self._standing.get(key, Standing(None, None, None))
        self._stand(key, replace(standing, failing=True))

    def _again(self, key: AccountKey, error: IstioAuthError) -> None:
        """Have a service account looked at again after a wait that is twice as long each time."""
        self._agenda.put(key, self._clock.now() + self._attempts.failed(key, at_least=error.retry_after))

    def _stand(self, key: AccountKey, standing: Standing) -> None:
        account = self._snapshots.account(key)
        if account is None:
            self._wrote.pop(key, None)
        if account is not None and self._scope(key) is Scope.MANAGED:
            self._standing[key] = standing
        else:
            self._standing.pop(key, None)


def _on_loop(call: Callable[[], None]) -> Callable[[], None]:
    """A function that any thread may call, to have `call` called on this event loop."""
    loop = asyncio.get_running_loop()

    def called() -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(call)

    return called


class _NotLeading(NotReady):
    """Another replica leads by now, and this one is about to be stopped: that needs no report."""
