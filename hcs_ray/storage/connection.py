"""One boto3 client for a store, its credentials renewed, its failures in one line each."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    SSLError,
)

from hcs_ray.config import StorageConfig
from hcs_ray.contracts import HcsError, InputError

T = TypeVar("T")

_ATTEMPTS = 8  # about a minute of trouble is outlived; AWS_MAX_ATTEMPTS says otherwise
# Credentials that have run out or were replaced before their time. A HEAD's answer has only a status.
_OUTDATED: Final = frozenset(
    {"ExpiredToken", "InvalidToken", "InvalidAccessKeyId", "TokenRefreshRequired", "400", "403"}
)
_REASONS: Final = {
    "SignatureDoesNotMatch": "the secret does not fit the access key",
    "InvalidAccessKeyId": "the store does not know this access key",
    "ExpiredToken": "the credentials have expired",
    "AccessDenied": "the credentials do not permit it",
    "403": "wrong credentials, or they do not permit it",
    "PreconditionFailed": "it was replaced meanwhile",
    "NoSuchBucket": "there is no such bucket",
    "RequestTimeTooSkewed": "this machine's clock is wrong",
    "NotImplemented": "the store cannot do it",
}


class Connection:
    """A store as its options say; it makes its client when first used, and again in another process.

    Pickled, it takes its options along and no credentials: each process finds its own with botocore's chain
    (environment, profile, web identity, container, instance). ``attempts`` are made where the store does not
    answer.
    """

    def __init__(self, options: StorageConfig, *, anonymous: bool = False, attempts: int = _ATTEMPTS) -> None:
        self.options = options
        self._anonymous = anonymous
        self._attempts = attempts
        self._lock = threading.Lock()
        self._made: tuple[int, Any] | None = None  # process, client

    def __reduce__(self) -> tuple[Callable[..., Connection], tuple[Any, ...]]:
        return _restored, (self.options, self._anonymous, self._attempts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Connection) and self.__reduce__() == other.__reduce__()

    def __hash__(self) -> int:
        return hash(self.__reduce__())

    def impatient(self) -> Connection:
        """The same store for a first look, which should not wait for one that is not there."""
        return Connection(self.options, anonymous=self._anonymous, attempts=2)

    def attempt(self, where: str, done: str, action: Callable[[Any], T]) -> T:
        """The result of ``action(client)``, which is called twice where the credentials were outdated.

        A failure is an `HcsError`: ``where`` cannot be ``done``, and why.
        """
        try:
            client = self._client()
            try:
                return action(client)
            except ClientError as error:
                if self._anonymous or code_of(error) not in _OUTDATED:
                    raise
            return action(self._client(instead_of=client))
        except ClientError as error:
            raise HcsError(f"{where}: cannot be {done}: {_refusal(error)}") from None
        except (BotoCoreError, OSError) as error:  # OSError: a token's file that is not there
            raise HcsError(f"{where}: cannot be {done}: {_breakdown(error)}") from None

    def _client(self, instead_of: Any = None) -> Any:
        with self._lock:  # making clients is not safe in threads
            if self._made is None or self._made[0] != os.getpid() or self._made[1] is instead_of:
                self._made = os.getpid(), self._connect()
            return self._made[1]

    def _connect(self) -> Any:
        import boto3
        from botocore import UNSIGNED
        from botocore.config import Config

        bundle = self.options.ca_bundle
        if bundle and not Path(bundle).is_file():
            raise InputError(f"storage.ca_bundle {bundle}: no such file")
        config = Config(
            retries={"mode": "standard", "max_attempts": _attempts(self._attempts)},
            connect_timeout=10,
            max_pool_connections=32,
            signature_version=UNSIGNED if self._anonymous else None,
        )
        # Of the whole session, since a token service wants it too; boto3 itself does not know AWS_REGION.
        session = boto3.session.Session(region_name=self.options.region or os.environ.get("AWS_REGION"))
        try:
            client = session.client(
                "s3", endpoint_url=self.options.endpoint, verify=bundle or None, config=config
            )
        except ValueError as error:
            raise InputError(f"storage.endpoint {self.options.endpoint!r}: {error}") from None
        client.meta.events.register_first("needs-retry.s3", _give_up_on_certificates)
        return client


def _attempts(most: int) -> int:
    """As many attempts as we make, or fewer or more as botocore's own variable says."""
    given = os.environ.get("AWS_MAX_ATTEMPTS", "")
    return int(given) if given.isdigit() and most == _ATTEMPTS else most


def _restored(options: StorageConfig, anonymous: bool, attempts: int) -> Connection:
    return Connection(options, anonymous=anonymous, attempts=attempts)


def code_of(error: Any) -> str:
    """The code of a store's refusal."""
    return str(error.response.get("Error", {}).get("Code", ""))


def _give_up_on_certificates(caught_exception: Exception | None = None, **_: Any) -> None:
    """Trying again does not make a certificate good."""
    if isinstance(caught_exception, SSLError):
        raise caught_exception


def _refusal(error: Any) -> str:
    """Why a store, or the service that gives credentials, has refused a request."""
    code = code_of(error)
    details = error.response.get("Error", {}).get("Message") or "refused"
    reason = f"{_REASONS.get(code, details)} ({code})"
    if "WebIdentity" in error.operation_name or "AssumeRole" in error.operation_name:
        return f"the credentials' own service answers: {reason}"
    return reason


def _breakdown(error: Exception) -> str:
    """Why a request did not come to an answer."""
    if isinstance(error, NoCredentialsError):
        return "no credentials: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return f"its certificate is not trusted; name its authority's file in storage.ca_bundle ({error})"
    if isinstance(error, EndpointConnectionError):
        return f"the store does not answer ({error})"
    return str(error)
