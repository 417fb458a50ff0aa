"""A small security token service on loopback: it answers AssumeRoleWithWebIdentity as AWS does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

_ANSWER = """<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{key}</AccessKeyId>
<SecretAccessKey>{secret}</SecretAccessKey><SessionToken></SessionToken><Expiration>{expires}</Expiration>
</Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""
_REFUSAL = """<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>InvalidIdentityToken</Code><Message>Token is not valid</Message></Error></ErrorResponse>"""


class TokenService:
    """Hands out the current keys for a good token; what it was asked is counted.

    SeaweedFS's own keys take no session token, so it is empty.
    """

    def __init__(self, token: str, lifetime_s: float) -> None:
        self.token = token
        self.lifetime_s = lifetime_s
        self.keys = ("", "")
        self.handed: list[str] = []

    def answer(self, request: dict[str, list[str]]) -> tuple[int, str]:
        if request["Action"] != ["AssumeRoleWithWebIdentity"] or request["WebIdentityToken"] != [self.token]:
            return 400, _REFUSAL
        key, secret = self.keys
        self.handed.append(key)
        expires = datetime.now(UTC) + timedelta(seconds=self.lifetime_s)
        return 200, _ANSWER.format(key=key, secret=secret, expires=expires.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


@contextmanager
def serving(service: TokenService) -> Iterator[str]:
    """The address of a service that answers during the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            status, answer = service.answer(parse_qs(body))
            self.send_response(status)
            self.send_header("Content-Type", "text/xml")
            self.end_headers()
            self.wfile.write(answer.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
