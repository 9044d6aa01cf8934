"""All volumes of this node: published, published again, unpublished, and found again after a restart.

* A publish writes the record first and mounts last, and returns when the pod can use what it sees. If it can not, in
  time, all of it is undone: there may be no unpublish for it. What a pod saw before, it goes on to see.
* A republish brings a token. It never mounts anew what the pod already sees, for running containers would not see it.
* An unpublish removes whatever is there, if anything.
* One call at a time for each volume; another is told to come again (CSI: ABORTED). A call that was begun runs to its
  end, even if its caller has given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path

import structlog

from istio_auth.errors import ConflictError, IstioAuthError, MalformedError, MissingError
from node_agent.csi.attributes import Form
from node_agent.csi.folder import VolumeFolder, folders_in, key_of
from node_agent.csi.mounts import Mounts
from node_agent.csi.pod_sockets import PodSockets
from node_agent.csi.pod_token import Token
from node_agent.csi.publication import Place, Publication
from node_agent.csi.threads import done_in_a_thread
from node_agent.csi.volume import Means, Volume

log = structlog.get_logger()


class Volumes:
    """The volumes. For one event loop.

    Args:
        parent: where their folders are.
        place: where we are.
        means: what each works with.
        mounts: shows them to pods.
        sockets: serves pods.
    """

    def __init__(self, parent: Path, place: Place, means: Means, *, mounts: Mounts, sockets: PodSockets) -> None:
        self._parent, self._place, self._means = parent, place, means
        self._mounts, self._sockets = mounts, sockets
        self._by_id: dict[str, Volume] = {}
        self._busy: dict[str, asyncio.Task[bool]] = {}

    def all(self) -> Iterable[Volume]:
        """Those that are published."""
        return list(self._by_id.values())

    async def publish(self, publication: Publication, token: Token, *, within: float) -> bool:
        """Let a pod see its volume, or take the pod's new token.

        Args:
            publication: what was asked for.
            token: of the pod.
            within: after how many seconds it is too late.

        Returns:
            whether it was published already.

        Raises:
            IstioAuthError: it can not be published; nothing is left of it, unless it was published before.
        """
        return await self._alone(publication.volume_id, lambda: self._publish(publication, token, within))

    async def unpublish(self, volume_id: str, target: Path) -> None:
        """Take away what is there of a volume; again does no harm.

        Raises:
            IstioAuthError: something is left; it is to be tried again.
        """
        await self._alone(volume_id, lambda: self._unpublish(volume_id, target))

    async def restore(self) -> None:
        """Serve all volumes that are there again, and remove what no pod sees. What one lacks holds up no other."""
        for folder in await asyncio.to_thread(lambda: list(folders_in(self._parent))):
            try:
                await self._restore(folder)
            except IstioAuthError as error:
                log.warning(
                    "a volume is not found again; the kubelet's next call publishes it anew",
                    key=folder.key,
                    reason=str(error),
                )

    async def end(self) -> None:
        """Do nothing any more. What pods see stays as it is."""
        for task in list(self._busy.values()):
            task.cancel()
        await asyncio.gather(*self._busy.values(), return_exceptions=True)
        for volume in self.all():
            await volume.end()

    async def _alone(self, volume_id: str, work: Callable[[], Coroutine[object, object, bool]]) -> bool:
        if volume_id in self._busy:
            message = "another call for this volume is under way"
            raise ConflictError(message, public=message)
        task = asyncio.create_task(work())
        self._busy[volume_id] = task
        task.add_done_callback(lambda done: self._done(volume_id, done))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:  # the kubelet waits no longer
            task.add_done_callback(lambda done: _note_failure(volume_id, done))
            raise

    def _done(self, volume_id: str, task: asyncio.Task[bool]) -> None:
        del self._busy[volume_id]
        if not task.cancelled():
            task.exception()  # whoever waited for it has been told, and the log if nobody did

    async def _publish(self, publication: Publication, token: Token, within: float) -> bool:
        if (volume := self._by_id.get(publication.volume_id)) is not None:
            await self._again(volume, publication, token, within)
            return True
        folder = VolumeFolder(self._parent, key_of(publication.volume_id))
        volume = Volume(publication, folder, self._means)
        is_seen = await done_in_a_thread(lambda: self._mounts.is_mounted(folder.content, publication.target))
        try:
            volume.take(token)
            await done_in_a_thread(lambda: folder.begin(publication))
            await volume.issued(within)
            await self._show(volume)
        except BaseException:
            await (self._leave(volume) if is_seen else self._undo(volume))
            raise
        self._by_id[publication.volume_id] = volume
        volume.start()
        log.info(
            "a volume is published",
            pod=publication.pod,
            spiffe_id=str(publication.spiffe_id),
            form=publication.attributes.form.value,
            volume=publication.volume_id,
        )
        return False

    async def _again(self, volume: Volume, publication: Publication, token: Token, within: float) -> None:
        if volume.publication != publication:
            raise _another(volume.publication, publication)
        volume.take(token)
        await volume.issued(within)
        await self._show(volume)

    async def _show(self, volume: Volume) -> None:
        """Let the pod see the volume, with all that belongs into it; what is there already stays as it is."""
        await volume.write()
        if volume.publication.attributes.form is Form.SOCKETS:
            await self._sockets.open(volume)
        await done_in_a_thread(lambda: self._mounts.mount(volume.folder.content, volume.publication.target))

    async def _leave(self, volume: Volume) -> None:
        """Stop serving it, and leave the files: the pod of a volume that was not restored may use them still."""
        self._sockets.close(volume)
        await volume.end()

    async def _undo(self, volume: Volume) -> None:
        await self._leave(volume)
        try:
            await done_in_a_thread(lambda: self._remove(volume.folder, volume.publication.target))
        except IstioAuthError as error:
            log.warning("something is left of a volume", pod=volume.publication.pod, reason=str(error))

    async def _unpublish(self, volume_id: str, target: Path) -> bool:
        targets = {target}
        if (volume := self._by_id.pop(volume_id, None)) is not None:
            targets.add(volume.publication.target)
            self._sockets.close(volume)
            await volume.end()
        await done_in_a_thread(lambda: self._remove(VolumeFolder(self._parent, key_of(volume_id)), *targets))
        if volume is not None:
            log.info("a volume is unpublished", pod=volume.publication.pod, volume=volume_id)
        return volume is not None

    def _remove(self, folder: VolumeFolder, *targets: Path) -> None:
        for target in targets:
            self._mounts.unmount(target)
        folder.remove()

    async def _restore(self, folder: VolumeFolder) -> None:
        try:
            publication = await asyncio.to_thread(folder.publication, self._place)
        except MissingError:  # it was begun, and nothing was mounted
            await asyncio.to_thread(folder.remove)
            return
        volume = Volume(publication, folder, self._means)
        if not await asyncio.to_thread(self._mounts.is_mounted, folder.content, publication.target):
            log.info("a volume was not published to its end and is undone", pod=publication.pod)
            await self._undo(volume)
            return
        try:
            await asyncio.to_thread(volume.restore)
        except IstioAuthError as error:
            log.warning("a pod's kept SVID is not used", pod=publication.pod, reason=str(error))
        self._by_id[publication.volume_id] = volume
        volume.start()
        if publication.attributes.form is Form.SOCKETS:
            await self._sockets.open(volume)  # if that fails, the next republish tries it again
        log.info("a volume is served again", pod=publication.pod, spiffe_id=str(publication.spiffe_id))


def _note_failure(volume_id: str, task: asyncio.Task[bool]) -> None:
    """Say in the log what a call failed with that nobody waits for any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        reason = str(error) if isinstance(error, IstioAuthError) else repr(error)
        log.warning("a call for a volume failed, and its caller waits no longer", volume=volume_id, reason=reason)


def _another(before: Publication, now: Publication) -> MalformedError:
    changed = sorted(
        name for name in before.context.keys() | now.context.keys() if before.context.get(name) != now.context.get(name)
    )
    what = ", ".join(changed[:5]) or "target_path or volume_mount_group"
    message = f"volume {now.volume_id} is published already, and with another {what}"
    return MalformedError(message, public=message)
