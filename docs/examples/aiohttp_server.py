"""An aiohttp server over mutual TLS."""

from aiohttp import web

from istio_auth import FileSource, SpiffeID, X509Source, is_id, peer_id, server_context

CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")


async def hello(request: web.Request) -> web.Response:
    """Tell the client who it is."""
    return web.Response(text=f"{peer_id(request)}\n")


def application() -> web.Application:
    """The application: nothing in it is special."""
    app = web.Application()
    app.router.add_get("/", hello)
    return app


async def start(source: X509Source, host: str = "127.0.0.1", port: int = 8443) -> web.AppRunner:
    """Begin to serve."""
    runner = web.AppRunner(application())
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=server_context(source, is_id(CLIENT))).start()
    return runner


if __name__ == "__main__":
    with FileSource("/etc/certs") as source:
        web.run_app(application(), host="127.0.0.1", port=8443, ssl_context=server_context(source, is_id(CLIENT)))
