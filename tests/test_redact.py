"""No secret leaves in a log, in however many pieces the log is written and read."""

from __future__ import annotations

import re
import string

from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.jobs.redact import Redactor, redactor, same_but_masked

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "an-access-key-of-the-tests",
    "AWS_SECRET_ACCESS_KEY": "wJalr/K7MDENG+bPxRfiCY=",
    "AWS_SESSION_TOKEN": "aaaaaaaaab",  # begins within itself
    "WANDB_API_KEY": "0123456789" * 4,
    "MY_DB_PASSWORD": "two words",
    "SIGNING_KEY": "-----BEGIN-----\nline one of a long key\nline two of a long key\n-----END-----\n",
    "HF_TOKEN": "short",
    "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
    "TOKENIZERS_PARALLELISM": "disabled",
    "RAY_AUTH_MODE": "no_secret",
    "KEYBOARD": "querty-layout",
}
VALUES = [ENVIRONMENT[name].strip().encode() for name in list(ENVIRONMENT)[:6]]
SHAPES = [
    b"AKIA" + b"ABCDEFGH01234567",
    b"ASIA" + b"ZZZZZZZZ01234567",
    b"0123456789abcdef0123456789abcdef01234567",
    b"wandb_v1_" + b"Ab9_" * 19,
    b"hf_" + b"x1Y2" * 8,
    b"eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJlb2Y",
]
REDACTOR = redactor(ENVIRONMENT)


def shipped(data: bytes, sizes: list[int], redact: Redactor = REDACTOR) -> bytes:
    """What goes out of a file that grows by these sizes, in the end all of it."""
    out, there = b"", 0
    for size in sizes:
        there = min(len(data), there + size)
        out += redact.take(data[len(out) : there])
        assert len(out) <= there
    return out + redact.take(data[len(out) :], final=True)


def test_names_that_tell_of_secrets_are_known() -> None:
    for value in VALUES:
        assert value in REDACTOR.values
    assert b"line one of a long key" in REDACTOR.values
    for harmless in ("short", "/var/run/token", "disabled", "no_secret", "querty-layout"):
        assert harmless.encode() not in REDACTOR.values


def test_a_line_keeps_all_but_the_secrets() -> None:
    line = b"login with wJalr/K7MDENG+bPxRfiCY= as AKIAABCDEFGH01234567, plate Week1_22123\n"
    assert REDACTOR.take(line) == (
        b"login with *********************** as ********************, plate Week1_22123\n"
    )
    assert same_but_masked(REDACTOR.take(line), line)
    assert not same_but_masked(REDACTOR.take(line), line.replace(b"plate", b"Plate"))


def test_ray_s_own_names_stay() -> None:
    """Node, actor and job ids are hexadecimal, too, and longer or shorter."""
    line = b"node " + b"ab" * 28 + b" actor " + b"cd" * 16 + b" job 01000000\n"
    assert REDACTOR.take(line) == line


def test_what_may_become_a_secret_waits_and_is_masked_at_the_end() -> None:
    assert REDACTOR.take(b"said: wJalr/K7MDEN") == b"said: "
    assert REDACTOR.take(b"said: wJalr/K7MDEN", final=True) == b"said: ************"
    assert REDACTOR.take(b"epoch 3: 12") == b"epoch 3: "
    assert REDACTOR.take(b"epoch 3: 12", final=True) == b"epoch 3: 12"


def test_the_environment_that_a_program_prints() -> None:
    """As of Ray's token, which the sidecar does not have."""
    printed = b"RAY_AUTH_TOKEN=0a1b2c3d4e5f\nRAY_AUTH_MODE=token\nMY_API_KEY='abcdefgh'\n"
    assert REDACTOR.take(printed) == (
        b"RAY_AUTH_TOKEN=************\nRAY_AUTH_MODE=token\nMY_API_KEY='********'\n"
    )
    assert REDACTOR.take(b"A_TOKEN=abcdefg") == b""


def test_a_word_without_end_is_not_held_for_ever() -> None:
    out = shipped(b"x" * 50_000, [9000] * 5)
    assert out == b"x" * 50_000
    assert len(REDACTOR.take(b"x" * 9000)) > 4000


FILLER = st.text(string.ascii_letters + string.digits + " .-_/=+\n", max_size=30).map(str.encode)


@settings(deadline=None, max_examples=300)
@given(
    pieces=st.lists(st.one_of(FILLER, st.sampled_from([*VALUES, *SHAPES])), max_size=12),
    sizes=st.lists(st.integers(0, 60), max_size=60),
)
def test_no_secret_goes_out_in_whatever_chunks(pieces: list[bytes], sizes: list[int]) -> None:
    data = b"".join(pieces)
    out = shipped(data, sizes)
    assert same_but_masked(out, data)
    for value in REDACTOR.values:
        assert value not in out
    assert not re.search(rb"(AKIA|ASIA)[A-Z0-9]{16}", out)


@settings(deadline=None, max_examples=200)
@given(
    secrets=st.lists(st.text("ab", min_size=6, max_size=9).map(str.encode), min_size=1, max_size=4),
    text=st.text("ab \n", max_size=120).map(str.encode),
    sizes=st.lists(st.integers(0, 15), max_size=40),
)
def test_secrets_that_overlap(secrets: list[bytes], text: bytes, sizes: list[int]) -> None:
    """Of two letters only, so that secrets begin within each other and within themselves."""
    out = shipped(text, sizes, Redactor(tuple(secrets)))
    assert same_but_masked(out, text)
    assert not any(secret in out for secret in secrets)
    every = {position for secret in secrets for first in _all(text, secret) for position in first}
    if not any(text.endswith(secret[:size]) for secret in secrets for size in range(4, len(secret))):
        masked = {position for position, byte in enumerate(out) if byte == ord("*")}
        assert masked == every


def _all(text: bytes, secret: bytes) -> list[range]:
    starts = [first for first in range(len(text)) if text.startswith(secret, first)]
    return [range(first, first + len(secret)) for first in starts]


@settings(deadline=None, max_examples=200)
@given(
    between=st.lists(st.sampled_from([b" ", b"\n", b": ", b'"', b"="]), min_size=1, max_size=6),
    shape=st.sampled_from(SHAPES),
    sizes=st.lists(st.integers(1, 40), max_size=40),
)
def test_a_key_of_a_known_shape_is_masked(between: list[bytes], shape: bytes, sizes: list[int]) -> None:
    data = b"a" + b"".join(mark + shape for mark in between) + between[0]
    out = shipped(data, sizes)
    assert shape not in out
    assert out.count(b"*") == len(between) * len(shape)
