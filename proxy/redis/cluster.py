"""A Redis Cluster: which master has which key, and what becomes of a command whose key has moved, or whose master
does not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final
from weakref import WeakSet

from redis.crc import key_slot

from proxy.redis.availability import Availability, is_away
from proxy.redis.client import MAX_PENDING, Client, RedisClient
from proxy.redis.deployment import Deployment, OnServer
from proxy.redis.resp import Done, Lost, NodeAway, ReplyError, TooManyPending, WireError, Word
from proxy.redis.topology import SLOTS, HostPort, read_slots
from proxy.redis.url import RedisAddress, RedisUrl
from proxy.telemetry import raised

HOPS: Final = 5
"""Redirections of one command. Each is one round trip; a slot under migration needs two."""
GAP: Final = 0.1  # seconds between two readings of the topology: after a failover every command asks for one
TROUBLED: Final = 1.0  # seconds until the next reading while a master is away or slots are not served
READ_SECONDS: Final = 1.0  # for each server that is asked for the topology
START_SECONDS: Final = 2.0  # how long start-up waits for the first reading
MAX_MASTERS: Final = 1000  # what Redis documents as the largest Cluster; redirections name servers too
_EVERYWHERE: Final = frozenset({b"SCRIPT", b"PING"})
_SCRIPTS: Final = frozenset({"EVAL", "EVALSHA", b"EVAL", b"EVALSHA"})
_ASKING: Final = (b"ASKING",)
_UNCOVERED: Final = "some slots have no master; CLUSTER NODES says which"


class Master:
    """A master, and whether it is left alone at present."""

    __slots__ = ("availability", "name", "place", "probe")

    def __init__(self, place: HostPort, probe: RedisClient, key: str, timeout: float, on_server: OnServer) -> None:
        """`key` is looked up as a probe, within `timeout` seconds."""
        host, port = place
        self.place = place
        self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.probe = probe

        async def look() -> None:
            try:
                await probe.call(b"MGET", key, timeout=timeout)
            except ReplyError as e:
                if is_away(e):
                    raise  # any other refusal, a redirection among them, is an answer

        def changed(trouble: WireError | None) -> None:
            on_server("back" if trouble is None else "away", self.name, str(trouble or ""))

        self.availability = Availability(look, changed)
        self.availability.start()

    def __repr__(self) -> str:
        return f"<Master {self.name} {self.availability!r}>"

    async def close(self) -> None:
        await self.availability.stop()
        await self.probe.close()


class Cluster(Deployment):
    """The masters and their slots, for all clients. It reads the topology anew when a reply says that a slot has
    moved, when a master is lost, and each second while something is wrong.

    A master that does not answer is reported once and left alone until a probe succeeds; keys of the others are
    used meanwhile.
    """

    sharded = True

    def __init__(
        self,
        url: RedisUrl,
        *,
        timeout: float,
        namespace: str = "gateway",
        on_server: OnServer = lambda change, server, detail: None,
    ) -> None:
        """`timeout`: seconds for a probe of a master."""
        self._url = url
        self._timeout = timeout
        self._probe_key = f"{namespace}:probe:1"
        self._on_server = on_server
        self._slots: list[Master | None] = [None] * SLOTS
        self._masters: dict[HostPort, Master] = {}
        self._leaving: list[Master] = []  # no masters any more, and not closed yet
        self._clients: WeakSet[ClusterClient] = WeakSet()
        self._unread: WireError | None = Lost("the topology of the Redis Cluster is not known yet")
        self._uncovered = False
        self._stale = asyncio.Event()
        self._tried = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Cluster {self._url} masters={len(self._masters)} troubles={len(self.troubles)}>"

    def client(self, *, connect_timeout: float, max_pending: int = MAX_PENDING) -> ClusterClient:
        client = ClusterClient(self, connect_timeout=connect_timeout, max_pending=max_pending)
        self._clients.add(client)
        return client

    def subscriber(self, on_push: Callable[[list[Any]], None], *, connect_timeout: float) -> RedisClient:
        """To any master: each message goes to all of them."""
        return RedisClient(
            self._url.address, connect_timeout=connect_timeout, on_push=on_push, find=self._any_place
        )

    async def _any_place(self) -> RedisAddress:
        for master in self._masters.values():
            if not master.availability.open:
                return self._at(master.place)
        raise Lost(str(self._unread or "no master serves"))

    def masters(self, *, connect_timeout: float) -> list[RedisClient]:
        """Raises WireError where not all are known."""
        if self._unread is not None or self._uncovered:
            raise Lost(str(self._unread or _UNCOVERED))
        return [self.dial(place, connect_timeout, MAX_PENDING) for place in self._masters]

    def renew(self, url: RedisUrl) -> None:
        self._url = url
        for master in self._masters.values():
            master.probe.renew(self._at(master.place))
        for client in self._clients:
            client.renew(self._at)

    async def start(self) -> None:
        """Read the topology; where that takes long, it goes on in the background."""
        self._stale.set()
        self._task = asyncio.create_task(self._run())
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._tried.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for master in (*self._masters.values(), *self._leaving):
            await master.close()

    @property
    def servers(self) -> list[str]:
        return sorted(master.name for master in self._masters.values())

    @property
    def troubles(self) -> Mapping[str, WireError]:
        found = {master.name: master.availability.trouble for master in self._masters.values()}
        troubles = {name: trouble for name, trouble in found.items() if trouble is not None}
        return troubles | {"slots": Lost(_UNCOVERED)} if self._uncovered else troubles

    # -- for its clients ----------------------------------------------------------------------------

    def owner(self, slot: int) -> Master | None:
        """The master of a slot; None where there is none."""
        return self._slots[slot]

    def all(self) -> list[Master]:
        return list(self._masters.values())

    def moved(self, slot: int, place: HostPort) -> Master | None:
        """A reply says that this server is the master of the slot; None: there are too many."""
        master = self.at(place)
        self._slots[slot] = master
        self.read_again()
        return master

    def at(self, place: HostPort) -> Master | None:
        """The master at a place, which may be new; None: there are too many."""
        master = self._masters.get(place)
        if master is None and len(self._masters) < MAX_MASTERS:
            probe = self.dial(place, self._timeout, MAX_PENDING)
            master = Master(place, probe, self._probe_key, self._timeout, self._on_server)
            self._masters[place] = master
            if self._unread is None:
                self._on_server("added", master.name, "")
        return master

    def lost(self, master: Master, e: WireError) -> None:
        """A master is lost, or serves nothing at present."""
        master.availability.failed(e)
        self.read_again()

    def read_again(self) -> None:
        """Read the topology soon."""
        self._stale.set()

    def away(self, master: Master | None) -> WireError:
        """For a command whose key has no master in use: a NodeAway; a Lost where no master serves at all."""
        if any(not other.availability.open for other in self._masters.values()):
            return NodeAway(f"{master.name if master is not None else 'its master'} is away")
        trouble = self._unread or next(iter(self.troubles.values()), None)
        return Lost(str(trouble), trouble.reason) if trouble is not None else Lost("no master serves")

    def dial(self, place: HostPort, connect_timeout: float, max_pending: int) -> RedisClient:
        return RedisClient(self._at(place), connect_timeout=connect_timeout, max_pending=max_pending)

    def _at(self, place: HostPort) -> RedisAddress:
        return replace(self._url.address, host=place[0], port=place[1])

    # -- the topology -------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(TROUBLED if self._unread is not None or self.troubles else None):
                    await self._stale.wait()
            self._stale.clear()
            try:
                await self._read()
            except WireError as e:
                if self._unread is not None:
                    self._unread = e
            except Exception as e:  # noqa: BLE001 - without this task no failover would be noticed
                raised("the topology of Redis", e)
            self._tried.set()
            await asyncio.sleep(GAP)

    async def _read(self) -> None:
        places = await read_slots(self._url, list(self._masters), READ_SECONDS)
        serving = {place: self.at(place) for place in places if place is not None}
        if not serving:
            raise Lost("no slot of the Redis Cluster has a master")
        self._slots = [None if place is None else serving[place] for place in places]
        self._unread = None
        uncovered = None in self._slots
        if uncovered is not self._uncovered:
            self._uncovered = uncovered
            self._on_server("away" if uncovered else "back", "slots", _UNCOVERED if uncovered else "")
        self._leaving += [self._masters.pop(place) for place in list(self._masters) if place not in serving]
        while self._leaving:
            await self._leaving[-1].close()
            self._on_server("removed", self._leaving.pop().name, "")
        for client in list(self._clients):
            await client.drop_idle(self._masters)


class ClusterClient(Client):
    """Commands to the masters of their keys, by one connection to each master. A redirected command, which was not
    carried out, is sent again; no other is.

    MGET takes any keys: those of a master that is away count as missing.
    """

    def __init__(self, cluster: Cluster, *, connect_timeout: float, max_pending: int) -> None:
        self._cluster = cluster
        self._connect_timeout = connect_timeout
        self._max_pending = max_pending
        self._links: dict[HostPort, RedisClient] = {}
        self.closed = False

    def __repr__(self) -> str:
        return f"<ClusterClient {self._cluster!r}>"

    def renew(self, address_of: Callable[[HostPort], Any]) -> None:
        """Use these addresses for new connections."""
        for place, link in self._links.items():
            link.renew(address_of(place))

    @property
    def pending(self) -> int:
        return sum([link.pending for link in self._links.values()])

    @property
    def full(self) -> bool:
        return self.pending >= self._max_pending

    def send(self, command: Sequence[Word], timeout: float, done: Done, *, now: bool = False) -> None:
        name = command[0]
        if self.closed:
            done(Lost("the gateway is shutting down"))
        elif name == b"MGET":
            self._look_up(command[1:], timeout, done)
        elif name in _EVERYWHERE:
            self._send_to_all(command, timeout, done)
        else:
            self._route(command, command[3 if name in _SCRIPTS else 1], timeout, done)

    def link(self, master: Master) -> RedisClient:
        """The connection to a master."""
        link = self._links.get(master.place)
        if link is None:
            link = self._cluster.dial(master.place, self._connect_timeout, self._max_pending)
            self._links[master.place] = link
        return link

    async def drop_idle(self, used: Collection[HostPort]) -> None:
        """Close connections to servers that are no masters any more, once they have nothing under way."""
        idle = [place for place, link in self._links.items() if place not in used and not link.pending]
        for link in [self._links.pop(place) for place in idle]:
            await link.close()

    async def close(self) -> None:
        self.closed = True
        while self._links:  # a redirection may come meanwhile, and open another
            _, link = self._links.popitem()
            await link.close()

    def _route(self, command: Sequence[Word], key: Word, timeout: float, done: Done) -> None:
        slot = key_slot(key if isinstance(key, bytes) else str(key).encode())
        deadline = asyncio.get_running_loop().time() + timeout
        _Errand(self._cluster, self, command, slot, deadline, done).go()

    def _look_up(self, keys: Sequence[Word], timeout: float, done: Done) -> None:
        """MGET, a key a command: a master refuses several keys unless they are of one slot."""
        values: list[Any] = [None] * len(keys)
        left = len(keys)
        problem: WireError | None = None

        def take(at: int, reply: Any) -> None:
            nonlocal left, problem
            left -= 1
            if type(reply) is list and len(reply) == 1:
                values[at] = reply[0]
            elif not isinstance(reply, NodeAway):
                problem = reply if isinstance(reply, WireError) else Lost("an invalid reply to MGET")
            if left == 0:
                done(values if problem is None else problem)

        for at, key in enumerate(keys):
            self._route((b"MGET", key), key, timeout, partial(take, at))

    def _send_to_all(self, command: Sequence[Word], timeout: float, done: Done) -> None:
        """To each master. The reply of one of them; the first error, but no missing master for a script, which is
        loaded where it is missing."""
        masters = self._cluster.all()
        left = len(masters)
        problem: WireError | None = None
        answer: Any = None

        def take(master: Master, reply: Any) -> None:
            nonlocal left, problem, answer
            left -= 1
            if isinstance(reply, Lost) and not self.closed:
                self._cluster.lost(master, reply)
                reply = self._cluster.away(master)
            if not isinstance(reply, WireError) or (isinstance(reply, NodeAway) and command[0] == b"SCRIPT"):
                answer = reply if answer is None or not isinstance(reply, WireError) else answer
            else:
                problem = problem or reply
            if left == 0:
                done(problem or answer)

        if not masters:
            done(self._cluster.away(None))
        for master in masters:
            if master.availability.open:
                take(master, self._cluster.away(master))
            else:
                self.link(master).send(command, timeout, partial(take, master))


class _Errand:
    """One command on its way, from the master that is believed to have its key to the one that has it."""

    __slots__ = ("_client", "_cluster", "_command", "_deadline", "_done", "_hops", "_master", "_slot")

    def __init__(
        self,
        cluster: Cluster,
        client: ClusterClient,
        command: Sequence[Word],
        slot: int,
        deadline: float,
        done: Done,
    ) -> None:
        self._cluster, self._client = cluster, client
        self._command = command
        self._slot = slot
        self._deadline = deadline
        self._done = done
        self._hops = 0
        self._master: Master | None = None

    def go(self, to: Master | None = None, *, asking: bool = False) -> None:
        master = self._master = to if to is not None else self._cluster.owner(self._slot)
        left = self._deadline - asyncio.get_running_loop().time()
        if master is None or master.availability.open or left <= 0:
            self._done(self._cluster.away(master))
        elif self._client.full:
            self._done(TooManyPending("the bound of bytes under way is reached"))
        else:
            link = self._client.link(master)
            if asking:
                link.send(_ASKING, left, _ignore)
            link.send(self._command, left, self._answered)

    def _answered(self, reply: Any) -> None:
        if isinstance(reply, ReplyError):
            self._refused(reply)
            return
        if isinstance(reply, Lost) and self._master is not None and not self._client.closed:
            self._cluster.lost(self._master, reply)
            reply = self._cluster.away(self._master)
        self._done(reply)

    def _refused(self, e: ReplyError) -> None:
        """Follow a redirection. Everything else that concerns this master or slot alone becomes a NodeAway."""
        cluster, master = self._cluster, self._master
        assert master is not None  # it has answered
        code = e.code
        if code in ("MOVED", "ASK", "TRYAGAIN"):
            self._hops += 1
            place = _place(e.text, master.place)
            if self._hops > HOPS or (place is None and code != "TRYAGAIN"):
                self._done(NodeAway(f"its slot is on its way ({code})"))
            elif place is None:
                self.go()
            else:
                self.go(
                    cluster.moved(self._slot, place) if code == "MOVED" else cluster.at(place),
                    asking=code == "ASK",
                )
        elif is_away(e):
            cluster.lost(master, e)
            self._done(cluster.away(master))
        elif code == "CLUSTERDOWN":
            cluster.read_again()
            one_slot = "slot" in e.text.lower()
            self._done(NodeAway("its slot has no master") if one_slot else Lost(str(e), e.reason))
        else:
            self._done(e)


def _ignore(reply: Any) -> None:
    """The reply to ASKING: the command behind it fails where that failed."""


def _place(text: str, asked: HostPort) -> HostPort | None:
    """The server in `MOVED 3999 host:port`; without a host it is that of the server that was asked."""
    words = text.split(" ")
    host, colon, port = words[2].rpartition(":") if len(words) == 3 else ("", "", "")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) < 65536:
        return None
    host = host.removeprefix("[").removesuffix("]")
    return (host or asked[0], int(port)) if host != "?" and len(host) < 256 else None
