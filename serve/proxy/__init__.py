"""What Serve's HTTP proxies run around the graph. Each node names `middlewares` in its environment:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=serve.proxy.middlewares

`cors` lets pages of other origins in, `traced` begins the trace of a request where tracing is on, `gate` answers 503
while the graph starts, and `replay` sends a request again whose replica has died.
"""

from starlette.middleware import Middleware
from uvicorn.config import HTTP_PROTOCOLS

from serve.memory import give_back_large_blocks
from serve.proxy.cors import Cors
from serve.proxy.gate import Gate
from serve.proxy.replay import Replay
from serve.proxy.traced import Traced


def middlewares() -> list[Middleware]:
    """Return what Serve's HTTP proxy is to wrap around itself, the innermost first, and prepare its process.

    Some clients offer to speak HTTP/2 with their first request (`Upgrade: h2c`) and send its body in HTTP/1.1 all the
    same. Of uvicorn's parsers, httptools takes the body for HTTP/2 and drops it, while h11 ignores the offer. Serve
    starts uvicorn with the parser "auto" and has no option for another.
    """
    give_back_large_blocks()
    HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOLS["h11"]
    return [Middleware(Replay), Middleware(Gate), Middleware(Traced), Middleware(Cors)]
