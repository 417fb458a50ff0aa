"""Who may see the explorer: whoever has its token, which the printed address carries once, or anybody."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import Final, NoReturn

from bokeh.server.auth_provider import AuthProvider
from tornado.web import Finish, RequestHandler

TOKEN_ARGUMENT: Final = "token"  # noqa: S105 - the name of a query's argument
_REFUSED: Final = (
    "403: this explorer needs the token of its address; open the whole one that hcs-ray explore printed\n"
)
_OTHER_HOST: Final = "403: this explorer answers at the address that hcs-ray explore printed alone\n"
_TOKEN_BYTES: Final = 32


def new_token() -> str:
    """A random token for one server's life."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


class Gate(AuthProvider):
    """Decides who is let in; ``refusal`` is the line that others get."""

    refusal: str

    def admits(self, handler: RequestHandler) -> bool:
        """Whether a request is answered."""
        raise NotImplementedError

    def refuse(self, handler: RequestHandler) -> NoReturn:
        """End a request with 403 and one line that says what to do."""
        handler.set_status(403)
        handler.set_header("Content-Type", "text/plain; charset=utf-8")
        handler.finish(self.refusal)
        raise Finish

    @property
    def get_user(self) -> Callable[[RequestHandler], str | None]:  # type: ignore[override]
        return lambda handler: "reader" if self.admits(handler) else None


class OpenGate(Gate):
    """Lets in everybody who asks for one of ``hosts`` (``name:port``), as pages of elsewhere cannot.

    A page of elsewhere may let its own name point at this machine; its requests then name that host.
    """

    refusal = _OTHER_HOST

    def __init__(self, hosts: list[str]) -> None:
        self._hosts = hosts
        super().__init__()

    def admits(self, handler: RequestHandler) -> bool:
        return handler.request.host.lower() in self._hosts

    @property
    def get_login_url(self) -> Callable[[RequestHandler], str]:  # type: ignore[override]
        return self.refuse


class TokenGate(Gate):
    """Lets in whoever shows the token: first in the address, then in a cookie that is set from it.

    The cookie is named after the port, since a browser sends cookies to all ports of a host. A request
    without it is refused with 403 and one line; one whose address has the token gets the cookie and is sent
    on to an address without.
    """

    refusal = _REFUSED

    def __init__(self, token: str, port: int) -> None:
        self._token = token
        self._port = port
        super().__init__()

    def admits(self, handler: RequestHandler) -> bool:
        return self._is_token(handler.get_cookie(self._cookie) or "")

    @property
    def get_login_url(self) -> Callable[[RequestHandler], str]:  # type: ignore[override]
        return self._ask

    @property
    def _cookie(self) -> str:
        return f"hcs_ray_{self._port}"

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self._token.encode())

    def _ask(self, handler: RequestHandler) -> str:
        """Answers a request without the cookie; Bokeh calls this where it would send to a login page."""
        if not self._is_token(handler.get_query_argument(TOKEN_ARGUMENT, "")):
            self.refuse(handler)
        handler.set_cookie(self._cookie, self._token, httponly=True, samesite="Lax")
        handler.set_header("Referrer-Policy", "no-referrer")
        handler.set_header("Cache-Control", "no-store")
        handler.redirect("./")
        raise Finish
