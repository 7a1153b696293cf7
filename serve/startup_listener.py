"""Answers on the server's port from the first second of its start until Serve's HTTP proxy listens there.

The `serve` command owns a `StartupListener`. This module imports nothing heavy, so that it can answer at once.
"""

import ctypes
import logging
import math
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from serve.ports import listening_socket, local_url
from serve.proxy.cors import with_cors
from serve.proxy.gate import ALIVE_PATH, DISCARD_S, refuse

# A socket option of Linux for which Python has no name.
SO_ATTACH_REUSEPORT_CBPF = 51
BPF_RETURN = 0x06
# The header by which this listener's answers can be told from the answers of the proxy that takes its place.
STARTING_HEADER = "x-starting"
PROBE_PATH = "/-/healthz"
# For how long connections are still accepted here that were made before the proxy took over.
LINGER_S = 1.0
MAX_WAIT_S = 10.0
POLL_S = 0.05


class StartupListener:
    """Listens on a port and answers 503, saying what is `awaited`. Serve's proxy may later listen on the same port.

    Raises OSError unless the port is free.
    """

    def __init__(self, host: str, port: int, origins: Sequence[str] = ()) -> None:
        self.awaited = "its program to be loaded"
        self.url = local_url(host, port)
        self.socket = listening_socket(host, port)
        self.app = with_cors(self._answer, origins)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        config = uvicorn.Config(
            self._run,
            interface="asgi3",
            loop="asyncio",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=math.ceil(DISCARD_S),
        )
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Connections that are still being answered are cut off.
        self.server.force_exit = True
        self._stop()

    def allow(self, origins: Sequence[str]) -> None:
        """Let pages of these origins read the answers."""
        self.app = with_cors(self._answer, origins)

    def hand_over(self) -> None:
        """Leave the port to the proxy that listens on it as well; return when this listener answers no more.

        New connections go to the proxy, and connections made before are answered here, so none is reset.
        """
        if _send_to_second(self.socket):
            end = time.monotonic() + MAX_WAIT_S
            while self._is_asked() and time.monotonic() < end:
                time.sleep(POLL_S)
            time.sleep(LINGER_S)
        self._stop()

    def _stop(self) -> None:
        if self._thread.is_alive():
            self.server.should_exit = True
            self._thread.join()
        self.socket.close()

    def _is_asked(self) -> bool:
        """Return whether a new connection still comes to this listener."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self.url + PROBE_PATH, timeout=MAX_WAIT_S) as reply:
                return STARTING_HEADER in reply.headers
        except urllib.error.HTTPError as error:
            with error:
                return STARTING_HEADER in error.headers
        except OSError:
            return False

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The connection is closed, so that the client's next request may come to the proxy.
                marks = [(STARTING_HEADER.encode(), b"1"), (b"connection", b"close")]
                message["headers"] = [*message["headers"], *marks]
            await send(message)

        if scope["path"] == ALIVE_PATH:
            await JSONResponse({"status": "alive"})(scope, receive, send_marked)
        else:
            await refuse(scope, receive, send_marked, self.awaited)


def _send_to_second(listener: socket.socket) -> bool:
    """Have new connections go to the second of the sockets that share a port; return whether this system can do that.

    As long as there is no second socket, they still come to the first.
    """
    program = ctypes.create_string_buffer(struct.pack("=HBBI", BPF_RETURN, 0, 0, 1))
    with suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, struct.pack("HxxxxxxP", 1, ctypes.addressof(program))
        )
        return True
    return False
