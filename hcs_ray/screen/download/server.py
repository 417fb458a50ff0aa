"""Requests to the server of a screen: redirects, proxies and certificates, and how patient we are.

Failures are of two kinds: what another try may mend (`TransientError`: dropped connections, silence, 429,
5xx), and what it will not (`HcsError`, one line with the URL: 404, 403, a bad certificate).
"""

from __future__ import annotations

import contextlib
import email.utils
import random
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Final, TypeVar
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import urllib3
import urllib3.exceptions as net
from urllib3.response import BaseHTTPResponse

from hcs_ray.contracts import HcsError, InputError

_REDIRECTS: Final = 5
_CHUNK_BYTES: Final = 1 << 18
_ADVANCE_BYTES: Final = 1 << 20  # a try that brought this much more does not count against the file
_LONGEST_ASKED_S: Final = 600.0  # no Retry-After holds us longer
_BUSY: Final = {408, 425, 429}
_NO_HEAD: Final = {405, 501}
_REFUSALS: Final = {401: "it needs a password", 403: "it may not be read", 404: "there is no such file"}

T = TypeVar("T")
Say = Callable[[str], None]


class StoppedError(Exception):
    """Another thread has ended the download."""


class TransientError(Exception):
    """What another try may mend; ``wait_s`` is how long the server asks to be left alone."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Patience:
    """How often and how slowly to try again. A wait doubles up to ``longest_s``, less a random part."""

    tries: int = 8
    base_s: float = 1.0
    longest_s: float = 60.0
    connect_s: float = 15.0
    read_s: float = 60.0


@dataclass(frozen=True)
class Remote:
    """A version of a file as its server describes it."""

    size: int
    etag: str | None = None
    modified: str | None = None

    @property
    def validator(self) -> str | None:
        """What ``If-Range`` takes: a strong ETag, else the date."""
        strong = self.etag if self.etag and not self.etag.startswith("W/") else None
        return strong or self.modified

    def is_same(self, other: Remote) -> bool:
        """Whether both are known to be one version: by ETag where both have one, else by date."""
        if self.size != other.size:
            return False
        if self.etag and other.etag:
            return self.etag == other.etag
        return self.modified is not None and self.modified == other.modified


class Server:
    """The files below one address. Safe to share between threads.

    Args:
        address: ``http://`` or ``https://``; a user and password in it are sent to that host, never shown.
        jobs: Connections at once.
        patience: When to try again, and when to give up.
        stop: Set it to end everything with `StoppedError`.
        say: Takes lines for the user.
    """

    def __init__(self, address: str, jobs: int, patience: Patience, stop: threading.Event, say: Say) -> None:
        self.base, self._secret = split_address(address)
        self._patience = patience
        self._stop = stop
        self.say = say
        self._pool = _pool(self.base, jobs)
        self._general = {"User-Agent": f"hcs_ray/{version('hcs_ray')}", "Accept-Encoding": "identity"}

    def url(self, name: str) -> str:
        """A file's address, as it may be shown."""
        return self.base + name

    def look(self, name: str) -> Remote:
        """Describe a file without reading it."""
        return self.persist(name, lambda: self._look(name), lambda: 0)

    def _look(self, name: str) -> Remote:
        for method in ("HEAD", "GET"):
            with self.open(method, name) as response:
                if response.status == 200:
                    return self.described(name, response)
                if method == "GET" or response.status not in _NO_HEAD:
                    break
        raise self.refusal(name, response)

    @contextlib.contextmanager
    def open(
        self, method: str, name: str, headers: dict[str, str] | None = None
    ) -> Iterator[BaseHTTPResponse]:
        """The answer behind at most five redirects, none of them from https to http; its body is unread."""
        response = self._follow(method, name, headers or {})
        try:
            yield response
        finally:
            if response.length_remaining == 0:
                response.release_conn()
            else:
                response.close()

    def chunks(self, response: BaseHTTPResponse, wanted: int) -> Iterator[bytes]:
        """What comes of a body, at most ``wanted`` bytes."""
        while wanted > 0:
            self._go_on()
            with self._network():
                chunk = response.read1(min(_CHUNK_BYTES, wanted), decode_content=False)
            if not chunk:
                return
            wanted -= len(chunk)
            yield chunk

    def described(self, name: str, response: BaseHTTPResponse) -> Remote:
        """The version of a file that a whole answer (200) is of."""
        headers = response.headers
        length = headers.get("Content-Length", "")
        if headers.get("Content-Encoding", "identity") != "identity" or not length.isdecimal():
            raise HcsError(f"{self.url(name)}: the server does not tell the file's size, which is needed")
        return Remote(int(length), headers.get("ETag"), headers.get("Last-Modified"))

    def refusal(self, name: str, response: BaseHTTPResponse) -> Exception:
        """The failure that an answer without the file stands for."""
        status = response.status
        if status in _BUSY or status >= 500:
            wait_s = _asked_wait_s(response.headers.get("Retry-After", ""))
            return TransientError(f"the server answers {status}", wait_s)
        return HcsError(f"{self.url(name)}: {_REFUSALS.get(status, 'the server refuses it')} ({status})")

    def persist(self, name: str, attempt: Callable[[], T], have: Callable[[], int]) -> T:
        """Try until it succeeds, or ``patience.tries`` times in a row without getting farther.

        Args:
            name: The file.
            attempt: Raises `TransientError` where it is worth another try.
            have: Bytes that are here, which tell whether tries get farther.
        """
        farthest, failures = have(), 0
        while True:
            try:
                return attempt()
            except TransientError as failure:
                failures = 1 if have() >= farthest + _ADVANCE_BYTES else failures + 1
                farthest = max(farthest, have())
                if failures >= self._patience.tries:
                    raise HcsError(
                        f"{self.url(name)}: {failure}, {failures} tries in a row; "
                        "run the same command later, and it goes on from there"
                    ) from None
                self._wait(name, failure, failures)

    def _wait(self, name: str, failure: TransientError, failures: int) -> None:
        pause = min(self._patience.base_s * 2.0 ** (failures - 1), self._patience.longest_s)
        pause = max(pause * random.uniform(0.5, 1.0), min(failure.wait_s, _LONGEST_ASKED_S))
        self.say(f"{name}: {failure}; try {failures + 1} of {self._patience.tries} in {pause:.1f} s")
        self._stop.wait(pause)
        self._go_on()

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise StoppedError

    def _follow(self, method: str, name: str, headers: dict[str, str]) -> BaseHTTPResponse:
        url = self.url(name)
        for _ in range(_REDIRECTS + 1):
            self._go_on()
            response = self._request(method, url, headers)
            target = response.get_redirect_location()
            if not target:
                return response
            response.close()
            url = self._redirected(name, url, target)
        raise HcsError(f"{self.url(name)}: more than {_REDIRECTS} redirects")

    def _request(self, method: str, url: str, headers: dict[str, str]) -> BaseHTTPResponse:
        known = self._secret if _origin(url) == _origin(self.base) else {}  # other hosts do not get it
        wait = urllib3.Timeout(connect=self._patience.connect_s, read=self._patience.read_s)
        with self._network():
            return self._pool.request(
                method, url, headers={**self._general, **known, **headers}, timeout=wait,
                retries=False, redirect=False, preload_content=False, decode_content=False,
            )  # fmt: skip

    def _redirected(self, name: str, url: str, target: str) -> str:
        after = urljoin(url, target)
        parts = urlsplit(after)
        if parts.scheme not in ("http", "https") or (url.startswith("https:") and parts.scheme == "http"):
            raise HcsError(
                f"{self.url(name)}: redirects to {parts.scheme}://{parts.hostname or ''}; it is not followed"
            )
        return after

    @contextlib.contextmanager
    def _network(self) -> Iterator[None]:
        """Tell what another try may mend; only the network's errors, none of the disk's, pass here."""
        try:
            yield
        except (net.HTTPError, OSError) as error:
            cause = error.args[0] if error.args else None
            if isinstance(cause, ssl.SSLCertVerificationError):
                raise HcsError(
                    f"{self.base}: {cause.verify_message}; SSL_CERT_FILE names the authorities to trust"
                ) from None
            raise TransientError(_words(error, self._patience)) from None


def split_address(address: str) -> tuple[str, dict[str, str]]:
    """An address with one slash at its end and no credentials, and the header that carries these."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError("--from: an address is http:// or https://, a host and a folder, without ? and #")
    try:
        port = "" if parts.port is None else f":{parts.port}"
    except ValueError:
        raise InputError("--from: the address has a port that is no number") from None
    secret = _basic(parts.username, parts.password)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    base = urlunsplit((parts.scheme, f"{host}{port}", f"{parts.path.rstrip('/')}/", "", ""))
    return base, urllib3.make_headers(basic_auth=secret)


def _pool(base: str, jobs: int) -> urllib3.PoolManager:
    """Connections, through the environment's proxy (``https_proxy``, ``no_proxy``) where there is one."""
    parts = urlsplit(base)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return urllib3.PoolManager(maxsize=jobs)
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    secret = _basic(urlsplit(proxy).username, urlsplit(proxy).password)
    return urllib3.ProxyManager(
        proxy, maxsize=jobs, proxy_headers=urllib3.make_headers(proxy_basic_auth=secret)
    )


def _basic(user: str | None, password: str | None) -> str | None:
    return None if user is None else f"{unquote(user)}:{unquote(password or '')}"


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _asked_wait_s(text: str) -> float:
    """``Retry-After``, seconds or a date; 0 where it says nothing usable."""
    if text.strip().isdecimal():
        return float(text)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def _words(error: Exception, patience: Patience) -> str:
    if isinstance(error, net.NameResolutionError):
        return "its host is not found"
    if isinstance(error, net.NewConnectionError):
        return f"no connection ({str(error).rpartition(': ')[2]})"
    if isinstance(error, net.ConnectTimeoutError):
        return f"no connection within {patience.connect_s:g} s"
    if isinstance(error, net.ReadTimeoutError):
        return f"silent for {patience.read_s:g} s"
    if isinstance(error, net.ProxyError):
        return "the proxy does not answer"
    return "the connection dropped"
