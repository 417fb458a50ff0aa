"""The explorer's server: one study on one address, behind a token unless told otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from hcs_ray.contracts import InputError

if TYPE_CHECKING:
    from bokeh.server.server import Server
    from tornado.ioloop import IOLoop
    from tornado.web import RequestHandler

    from hcs_ray.explore.access import Gate
    from hcs_ray.explore.colourings import Colourings
    from hcs_ray.explore.shared import Explorer
    from hcs_ray.study import Study

LOOPBACK: Final = "127.0.0.1"
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 - what a person may ask for
_LABELS_MS: Final = 3000  # between two looks for labels of others
_MOST_PORT: Final = 65535


def explore(
    study: Study, address: str, port: int, user: str, say: Callable[[str], None], with_token: bool = True
) -> None:
    """Serve a study until Ctrl-C or SIGTERM; ``port`` 0 takes a free one; ``say`` prints a line.

    Raises:
        InputError: the study cannot be read, the address or port cannot be had, or a token is not wanted
            where others than this machine's can ask.
    """
    from hcs_ray.explore.scene import open_scene
    from hcs_ray.explore.shared import open_explorer
    from hcs_ray.labels import checked_user

    checked_user(user)
    if not 0 <= port <= _MOST_PORT:
        raise InputError(f"--port {port}: it is 0 (a free one) to {_MOST_PORT}")
    if not with_token and not _is_loopback(address):
        raise InputError(
            f"--no-token with --address {address}: only on this machine's own addresses, as {LOOPBACK}; "
            "leave one of the two out"
        )
    port = _free_port(address, port)
    explorer = open_explorer(open_scene(study), user)
    try:
        _serve(explorer, address, port, say, with_token)
    finally:
        explorer.close()


def _serve(explorer: Explorer, address: str, port: int, say: Callable[[str], None], with_token: bool) -> None:
    from tornado.ioloop import PeriodicCallback

    from hcs_ray.explore.access import TOKEN_ARGUMENT, OpenGate, TokenGate, new_token
    from hcs_ray.explore.colourings import Colourings

    hosts = [f"{host}:{port}" for host in _hosts(address)]
    token = new_token() if with_token else ""
    gate = TokenGate(token, port) if with_token else OpenGate(hosts)
    colourings = Colourings(explorer.scene, explorer.labels)
    try:
        server = _server(explorer, colourings, gate, address, port, hosts)
    except OSError as error:
        raise _taken(address, port, error) from None
    server.start()
    labels = PeriodicCallback(lambda: _off_the_loop(explorer, explorer.labels.refresh), _LABELS_MS)
    labels.start()
    if _has_large_map(explorer):
        explorer.pool.submit(_prepare, colourings)
    for stage, why in sorted(explorer.scene.missing.items()):
        say(f"{stage}: {why}")
    if explorer.labels.problem:
        say(f"labels: {explorer.labels.problem}")
    say(f"Exploring {explorer.title}, labelling as {explorer.user}. Open this address; Ctrl-C stops.")
    if not _is_loopback(address):
        say(
            "Anybody on the network who has this address sees the study and may label it, and what is sent "
            f"is not encrypted. Safer: --address {LOOPBACK} --port {port}, and ssh -L "
            f"{port}:{LOOPBACK}:{port} from where the browser is."
        )
    if not with_token:
        say(f"Anybody with an account on this machine can open it and label as {explorer.user}.")
    say(f"http://{hosts[0]}/" + (f"?{TOKEN_ARGUMENT}={token}" if with_token else ""))
    with _stopping(server.io_loop):
        server.io_loop.start()
    labels.stop()
    server.stop()
    say("Stopped.")


def _server(
    explorer: Explorer, colourings: Colourings, gate: Gate, address: str, port: int, hosts: list[str]
) -> Server:
    import panel as pn
    from panel.io.server import get_server

    from hcs_ray.explore.app import page
    from hcs_ray.explore.images import patterns

    def session() -> pn.template.BaseTemplate:
        document = pn.state.curdoc
        assert document is not None
        return page(explorer, colourings, document)

    server: Server = get_server(
        {"/": session},
        port=port,
        address=address,
        title=explorer.title,
        websocket_origin=hosts,
        auth_provider=gate,
        extra_patterns=patterns(explorer, gate),
        log_function=_log_request,
    )
    return server


def _has_large_map(explorer: Explorer) -> bool:
    """Whether the whole map is too large for marks."""
    from hcs_ray.explore.views.map import MOST_MARKS

    return "x" in explorer.fields and int(explorer.fields["x"].notna().sum()) > MOST_MARKS


def _prepare(colourings: Colourings) -> None:
    """Let numba compile what draws many points, while nobody waits for it."""
    from hcs_ray.explore.shading import warm_up

    try:
        warm_up(colourings.get(colourings.first))
    except Exception:
        logging.getLogger("hcs_ray").exception("explore: the drawing of many points could not be prepared")


async def _off_the_loop(explorer: Explorer, work: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(explorer.pool, work)


def _log_request(handler: RequestHandler) -> None:
    """Only failures of ours, and without the query, which may hold the token."""
    if handler.get_status() >= 500:
        logging.getLogger("hcs_ray").error("explore: %s %s", handler.get_status(), handler.request.path)


@contextlib.contextmanager
def _stopping(loop: IOLoop) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the loop."""

    def stop(*_: Any) -> None:
        loop.add_callback_from_signal(loop.stop)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hosts(address: str) -> list[str]:
    """The names by which a browser may ask for an address, as addresses are written; the first is told."""
    if address in _EVERYWHERE:
        names = dict.fromkeys(
            (socket.gethostname(), socket.getfqdn(), *_own_addresses(), LOOPBACK, "localhost")
        )
        return [name.lower() for name in names]
    if _is_loopback(address):
        return list(dict.fromkeys([_written(address), LOOPBACK, "localhost"]))
    return [_written(address).lower()]


def _own_addresses() -> list[str]:
    try:
        return socket.gethostbyname_ex(socket.gethostname())[2]
    except OSError:
        return []


def _written(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _free_port(address: str, port: int) -> int:
    """The port where it is free now, some free one for 0; told before a study is read for nothing."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            found.bind((address, port))
            return int(found.getsockname()[1])
    except OSError as error:
        raise _taken(address, port, error) from None


def _taken(address: str, port: int, error: OSError) -> InputError:
    wanted = f"--address {address}" + (f" --port {port}" if port else "")
    return InputError(f"{wanted}: cannot be had: {error.strerror or error}")
