"""The end of a server: what had been sent to it by then is read, and answered."""

import asyncio
import socket
from contextlib import suppress

from uvicorn import Server

LOOKS = 10
"""A connection that was just taken has its request read after several looks at the sockets."""
PAUSE = 0.01
"""Seconds from one to the next."""


class Stopping(Server):
    """uvicorn's hangs up at once on connections of which it has read nothing yet: those that wait to be taken, or whose
    requests arrived while it computed others."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Read what is there, take no more, and stop. Each answer from now on is its connection's last, and says so."""
        self.server_state.default_headers.append((b"connection", b"close"))
        await _look()
        waiting = [one for listening in sockets or [] for one in _accepted(listening)]
        for server in self.servers:
            server.close()
        for listening in sockets or []:
            listening.close()
        for one in waiting:
            with suppress(OSError):  # it has gone by now
                await asyncio.get_running_loop().connect_accepted_socket(self._protocol, one)
        await _look()
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


async def _look() -> None:
    for _ in range(LOOKS):
        await asyncio.sleep(PAUSE)


def _accepted(listening: socket.socket) -> list[socket.socket]:
    """Connections that wait to be taken."""
    found = []
    with suppress(OSError):  # nobody waits any more
        while True:
            one, _ = listening.accept()
            one.setblocking(False)
            found.append(one)
    return found
