"""Ports of this machine: one for a server that is started to be asked by whoever starts it, and whether one is free."""

import socket


def free_port() -> int:
    """Return a port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def local_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server on `host`, which may mean all addresses."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket that Serve's HTTP proxy can later listen beside. Raises OSError if the port is taken.

    Every proxy shares its port with whoever asks for it, so the port is first bound without sharing it.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # Connections that have been closed a moment ago do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen()
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        # Until one of them listens, two sockets with SO_REUSEADDR may both be bound.
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
