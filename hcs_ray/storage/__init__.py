"""One small file system over a local folder or an ``s3://bucket/prefix``.

Paths are relative, with forward slashes, and cannot leave the root. Every write is whole or absent: a
temporary name and a rename locally, one put or a completed multipart upload on S3. Conditional puts
(`Storage.put_if_absent`, `Storage.put_if_match`) carry the leases of `hcs_ray.lease`.

S3 goes through boto3 alone, also for Arrow and Ray (`hcs_ray.storage.arrow`): one chain of credentials, which
refreshes them, and one set of options (``storage`` in study.yaml). Without options, ``AWS_ENDPOINT_URL``,
``AWS_REGION`` and ``AWS_CA_BUNDLE`` apply. Options travel with a pickled storage; credentials never do.
"""

from __future__ import annotations

from pathlib import Path

from hcs_ray.config import StorageConfig
from hcs_ray.contracts import InputError
from hcs_ray.storage.base import DEFAULTS, Storage, Writer, checked
from hcs_ray.storage.local import LocalStorage
from hcs_ray.storage.probe import clock_skew, preflight
from hcs_ray.storage.s3 import S3Storage

__all__ = [
    "LocalStorage",
    "S3Storage",
    "Storage",
    "StorageConfig",
    "Writer",
    "checked",
    "clock_skew",
    "open_storage",
    "preflight",
]


def open_storage(url: str, options: StorageConfig = DEFAULTS, *, anonymous: bool = False) -> Storage:
    """The storage of a local folder (made when first written) or of ``s3://bucket/prefix``.

    ``anonymous`` reads a public bucket without credentials.
    """
    if url.startswith("s3://"):
        return S3Storage(url, options, anonymous=anonymous)
    if "://" in url:
        raise InputError(f"{url}: storage is a local folder or s3://bucket/prefix")
    return LocalStorage(Path(url), options)
