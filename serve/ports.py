"""Ports of this machine: finds a free one, listens on one, and gives the URL of a server on one."""

import socket


def free_port() -> int:
    """Return a port of this machine on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def local_url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches its server on `host`, which may stand for all addresses."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def listening_socket(host: str, port: int) -> socket.socket:
    """Return a listening socket that Serve's HTTP proxy can later listen beside. Raises OSError if the port is taken.

    A proxy of Serve shares its port with any socket that asks for it. Therefore the port is first bound without
    sharing, which fails if it is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # Connections that were closed a moment ago do not make the port count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen()
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        # As long as neither listens, two sockets with SO_REUSEADDR can both be bound.
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
