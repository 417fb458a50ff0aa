"""What an API server refuses, or what keeps us from it, each as one line that says what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from hcs_ray.contracts import HcsError
from hcs_ray.jobs.kinds import KUBERAY, KUEUE

_INSTALLS: Final = {KUBERAY: "KubeRay 1.7", KUEUE: "Kueue"}
_LONGEST: Final = 600  # characters of a server's message; an invalid object can fill pages
_WRONG_INPUT: Final = (400, 422)


class KubeError(HcsError):
    """What the API server refuses, or what keeps us from it.

    Attributes:
        code: The HTTP status; 0 where there was no answer.
    """

    def __init__(self, message: str, code: int = 0, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code


@dataclass(frozen=True)
class Call:
    """What was asked of which cluster; for messages."""

    verb: str
    resource: str  # as in "rayjobs"
    group: str  # "" of the core
    name: str | None
    namespace: str
    context: str
    host: str

    @property
    def what(self) -> str:
        return f"{self.verb} {self.resource}{f'/{self.name}' if self.name else ''}"


def is_not_there(code: int, body: bytes, call: Call) -> bool:
    """Whether a 404 means that the object is not there, and not its kind or its namespace."""
    details = _status(body).get("details") or {}
    return code == 404 and call.name is not None and details.get("name") == call.name


def refusal(code: int, body: bytes, call: Call) -> KubeError:
    """The line for an answer that is no success."""
    status = _status(body)
    message = _short(str(status.get("message") or body.decode(errors="replace")))
    line = f"{call.what}: {message or f'HTTP {code}'}{_advice(code, status, call)}"
    return KubeError(line, code, exit_code=2 if code in _WRONG_INPUT else 1)


def unreachable(error: Exception, call: Call) -> KubeError:
    """The line for a server that does not answer, or not with a certificate that we trust."""
    # urllib3 wraps the cause in the words of its pool; the innermost error says what it was.
    inner: BaseException = error
    while (cause := getattr(inner, "reason", None) or inner.__cause__ or inner.__context__) and isinstance(
        cause, BaseException
    ):
        inner = cause
    why = getattr(inner, "strerror", None) or str(inner).rpartition(">: ")[2] or type(inner).__name__
    advice = (
        "its certificate is not the one that the context trusts"
        if "certificate" in why.lower()
        else "is the context the right one, the VPN up, the cluster running?"
    )
    return KubeError(
        f"the API server {call.host} (context {call.context}) cannot be reached: {_short(why)}; {advice}"
    )


def _advice(code: int, status: dict[str, Any], call: Call) -> str:
    message = str(status.get("message", ""))
    if code == 401:
        return (
            f"; the credentials of context {call.context} are wrong or have expired: log in again "
            "(kubectl get pods must work)"
        )
    if code == 403 and " cannot " in message:
        return f"; ask for the Role of k8s/setup in namespace {call.namespace} (context {call.context})"
    if code == 404 and (status.get("details") or {}).get("kind") == "namespaces":
        return "; make it with k8s/setup, or name another with --namespace"
    if code == 404 and call.group in _INSTALLS and not (status.get("details") or {}).get("name"):
        return f"; the cluster has no {call.resource}: install {_INSTALLS[call.group]} first"
    if code == 409 and status.get("reason") == "Conflict":
        return "; somebody changed it at the same moment: run the command again"
    if code == 400 and "unknown field" in message:
        return "; is the cluster's KubeRay older than 1.7?" if call.group == KUBERAY else ""
    if code == 429 or code >= 500:
        return "; the server is busy or ill: run the command again later"
    return ""


def _status(body: bytes) -> dict[str, Any]:
    """The ``Status`` object of an answer; empty where it is plain text, as of a path that is not served."""
    try:
        status = json.loads(body)
    except ValueError:
        return {}
    return status if isinstance(status, dict) else {}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."
