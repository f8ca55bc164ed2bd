import socket
import time
from threading import Thread
from typing import Any

from uvicorn import Config

from multigate.serve.stopping import Stopping


def test_what_was_sent_before_a_server_stops_is_answered() -> None:
    """Also what nobody has read by then: the server computes while it is sent, and does not look."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = listening.getsockname()
        open_before, also_open = (socket.create_connection(address, timeout=30) for _ in range(2))
        made: list[socket.socket] = []

        def while_first() -> None:
            server.should_exit = True
            ask(open_before, "/second")
            time.sleep(0.2)  # the server looks every tenth of a second whether it is to stop

        def while_second() -> None:
            ask(also_open, "/third")
            for _ in range(3):
                made.append(socket.create_connection(address, timeout=30))
                ask(made[-1], "/new")

        meanwhile = {"/first": while_first, "/second": while_second}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            meanwhile.get(scope["path"], list)()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})

        server = Stopping(Config(app, log_level="warning", lifespan="off", ws="none", timeout_graceful_shutdown=5))
        running = Thread(target=server.run, args=([listening],))
        running.start()
        for one in (open_before, also_open):
            ask(one, "/before")
            assert answered(one).startswith("HTTP/1.1 200 ")
        first = socket.create_connection(address, timeout=30)
        ask(first, "/first")
        running.join(30)
        assert not running.is_alive()
        assert len(made) == 3
        for one in (first, open_before, also_open, *made):
            with one:
                told = answered(one)
                assert told.startswith("HTTP/1.1 200 ")
                assert one in (first, open_before) or "connection: close" in told
                assert one.recv(1) == b""


def ask(one: socket.socket, path: str) -> None:
    one.sendall(f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())


def answered(one: socket.socket) -> str:
    """The head of an answer without a body."""
    told = b""
    while not told.endswith(b"\r\n\r\n"):
        part = one.recv(1)
        assert part, f"it hung up after {told!r}"
        told += part
    return told.decode()
