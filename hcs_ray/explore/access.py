"""Who may see the explorer: whoever has its token, which the printed address carries once."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import Final

from bokeh.server.auth_provider import AuthProvider
from tornado.web import Finish, RequestHandler

TOKEN_ARGUMENT: Final = "token"  # noqa: S105 - the name of a query's argument
_REFUSED: Final = (
    "403: this explorer needs the token of its address; open the whole one that hcs-ray explore printed\n"
)
_TOKEN_BYTES: Final = 32


def new_token() -> str:
    """A random token for one server's life."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


class TokenGate(AuthProvider):
    """Lets in whoever shows the token: first in the address, then in a cookie that is set from it.

    The cookie is named after the port, since a browser sends cookies to all ports of a host. A request
    without it is refused with 403 and one line; one whose address has the token gets the cookie and is sent
    on to an address without.
    """

    def __init__(self, token: str, port: int) -> None:
        self._token = token
        self._port = port
        super().__init__()

    def admits(self, handler: RequestHandler) -> bool:
        """Whether a request carries the cookie."""
        return self._is_token(handler.get_cookie(self._cookie) or "")

    @property
    def get_user(self) -> Callable[[RequestHandler], str | None]:  # type: ignore[override]
        return lambda handler: "reader" if self.admits(handler) else None

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
            refuse(handler)
        handler.set_cookie(self._cookie, self._token, httponly=True, samesite="Lax")
        handler.set_header("Referrer-Policy", "no-referrer")
        handler.set_header("Cache-Control", "no-store")
        handler.redirect("./")
        raise Finish


def refuse(handler: RequestHandler) -> None:
    """End a request with 403 and one line that says what to do."""
    handler.set_status(403)
    handler.set_header("Content-Type", "text/plain; charset=utf-8")
    handler.finish(_REFUSED)
    raise Finish
