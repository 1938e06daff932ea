"""Objects below an address: read, put, listed and removed, with retries that are told and errors in sentences."""

from __future__ import annotations

import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit

from unsupseg_cli.artifacts.files import whole_file
from unsupseg_cli.core.address import SCHEMES, Address
from unsupseg_cli.core.errors import StorageError, UsageError
from unsupseg_cli.core.progress import duration

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")

PATIENCE = 180.0
"""Seconds for which an endpoint that does not answer is tried again: three times an outage of a minute."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 10.0  # seconds between tries, doubled each time
_AT_ONCE = 2.0  # seconds in which an endpoint that works has refused or answered
_CONNECT = timedelta(seconds=10)
_REQUEST = timedelta(seconds=120)  # a piece of a file at 0.15 MB/s, the slowest line that is worth it
_PIECE = 16 << 20  # bytes that are fetched by one request: a lost one costs no more
_LISTED = 1000  # objects in one answer of a listing

Version = dict[str, str]
"""What says which content an object has: its ETag, and its generation where the service has these."""


_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Variables that the client reads, the one that counts first; one that is no address makes it panic."""


class ForbiddenError(StorageError):
    """The credentials are wrong, missing, or do not allow what was asked."""


@dataclass(frozen=True)
class Stored:
    """The content of an object, and its version."""

    data: bytes
    version: Version


@dataclass(frozen=True)
class Listed:
    """An object as a listing shows it; ``path`` is relative to the address."""

    path: str
    size: int
    etag: str
    modified: datetime


def endpoint_of(address: Address) -> str:
    """Return the server that the environment names for a service, empty for the service's own.

    Raises:
        UsageError: it is not an address of a server.
    """
    named = {name: os.environ[name] for name in _ENDPOINTS.get(address.scheme, ()) if name in os.environ}
    for name, endpoint in named.items():
        if not _is_server(endpoint):
            raise UsageError(
                f"{name} is '{endpoint}', which is no address of a server: expected http://HOST:PORT or https://HOST; "
                f"or unset it for {SCHEMES[address.scheme]} itself."
            )
    return next(iter(named.values()), "")


def _is_server(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and parts.port != 0
            and text.isprintable()
            and " " not in text
        )
    except ValueError:  # a port that is none
        return False


def open_store(address: Address) -> ObjectStore:
    """Return the store of an address, with credentials and endpoint from the environment.

    Raises:
        UsageError: the extra `cloud` is missing, or the environment does not say enough.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise UsageError(
            f"'{address}' lies in object storage, which needs the package obstore: pip install 'unsupseg[cloud]'"
        ) from None
    endpoint = endpoint_of(address)
    try:
        return from_url(
            str(address),
            client_options={
                "connect_timeout": _CONNECT,
                "timeout": _REQUEST,
                "allow_http": endpoint.startswith("http://"),
            },
            retry_config={"max_retries": 0},  # tried again here, where it can be told
        )
    except BaseError as error:
        raise UsageError(
            f"'{address}' cannot be opened ({_first_line(error)}): set the account and the credentials in the "
            "environment, see docs/cloud.md."
        ) from None


@dataclass
class Objects:
    """The objects below an address.

    ``tell`` is told when the endpoint does not answer, and when it does again. Every method raises `ForbiddenError`
    where the credentials do not allow it, and UnsupsegError where the bucket is not there or the endpoint does not
    answer for ``patience`` seconds.
    """

    address: Address
    store: Any = field(repr=False)
    tell: Callable[[str], None] = field(default=lambda _: None, repr=False)
    patience: float = PATIENCE
    _met: bool = field(default=False, init=False, repr=False)  # the endpoint has answered once

    def read(self, path: str) -> Stored | None:
        """Return the content of an object; None where it is not there."""
        import obstore

        def get() -> Stored:
            result = obstore.get(self.store, path)
            return Stored(bytes(result.bytes()), _version(result.meta))

        try:
            return self._call(path, get)
        except FileNotFoundError:
            return None

    def head(self, path: str) -> Listed | None:
        """Return what a listing says of an object; None where it is not there."""
        import obstore

        try:
            meta = self._call(path, lambda: obstore.head(self.store, path))
        except FileNotFoundError:
            return None
        return Listed(path, meta["size"], meta["e_tag"] or "", meta["last_modified"])

    def create(self, path: str, data: bytes | Path) -> Version | None:
        """Put an object that is not there yet; return its version, None where one of other content is.

        A put whose answer was lost is tried again and finds its own content, which counts as success.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError

        def put() -> Version:
            return _version(obstore.put(self.store, path, data, mode="create"))

        try:
            return self._call(path, put)
        except AlreadyExistsError:
            return self._own(path, data)

    def replace(self, path: str, data: bytes, version: Version) -> Version | None:
        """Put an object in place of the one of a version; return the new version, None where it changed since."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> Version:
            return _version(obstore.put(self.store, path, data, mode=cast(Any, version)))

        try:
            return self._call(path, put)
        except (PreconditionError, AlreadyExistsError, FileNotFoundError):
            return self._own(path, data)

    def write(self, path: str, data: bytes | Path) -> None:
        """Put an object, whatever is there: only where nobody else writes."""
        import obstore

        self._call(path, lambda: obstore.put(self.store, path, data))

    def list(self, prefix: str = "", limit: int | None = None) -> list[Listed]:
        """Return the objects below a prefix, which ends where a name does."""
        import obstore

        def collect() -> list[Listed]:
            found: list[Listed] = []
            for page in obstore.list(self.store, prefix or None, chunk_size=_LISTED):
                found += [
                    Listed(meta["path"], meta["size"], meta["e_tag"] or "", meta["last_modified"])
                    for meta in page
                ]
                if limit is not None and len(found) >= limit:
                    break
            return found

        return self._call(prefix, collect)

    def fetch(self, path: str, target: Path, size: int, sha256: str | None = None) -> bool:
        """Bring an object of ``size`` bytes into a file, which is whole as soon as it is there.

        Returns:
            whether the object is there with this size, and this digest where one is given; else nothing is written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole_file(target) as partial:
                digest = hashlib.sha256()
                with partial.open("wb") as file:
                    for piece in self._pieces(path, size):
                        digest.update(piece)
                        file.write(piece)
                    length = file.tell()
                if length != size or sha256 not in (None, digest.hexdigest()):
                    raise _UnfitError
        except (_UnfitError, FileNotFoundError):
            return False
        return True

    def digest(self, path: str, size: int) -> str:
        """Return the SHA-256 of an object of ``size`` bytes; empty where it is not there or is shorter."""
        digest, length = hashlib.sha256(), 0
        try:
            for piece in self._pieces(path, size):
                digest.update(piece)
                length += len(piece)
        except FileNotFoundError:
            return ""
        return digest.hexdigest() if length == size else ""

    def remove(self, paths: Iterable[str]) -> None:
        """Remove objects; those that are not there are no error."""
        import obstore

        for path in paths:
            try:
                self._call(path, partial(obstore.delete, self.store, path))
            except FileNotFoundError:
                continue

    def remove_below(self, prefix: str) -> None:
        """Remove every object below a prefix."""
        self.remove([item.path for item in self.list(prefix)])

    def _pieces(self, path: str, size: int) -> Iterator[bytes]:
        """Yield the content in pieces; raises FileNotFoundError."""
        import obstore

        for start in range(0, size, _PIECE):
            stop = min(start + _PIECE, size)
            piece = partial(obstore.get_range, self.store, path, start=start, end=stop)
            yield bytes(self._call(path, piece))

    def _own(self, path: str, data: bytes | Path) -> Version | None:
        """Return the version of an object whose content is that of a put, None if it is another."""
        content = data.read_bytes() if isinstance(data, Path) else data
        stored = self.read(path)
        return stored.version if stored is not None and stored.data == content else None

    def _call(self, path: str, request: Callable[[], T]) -> T:
        """Make a request, again and again while the endpoint does not answer.

        Raises:
            FileNotFoundError: there is no such object. AlreadyExistsError and PreconditionError pass, too.
        """
        from obstore.exceptions import (
            AlreadyExistsError,
            BaseError,
            PermissionDeniedError,
            PreconditionError,
            UnauthenticatedError,
        )

        begun, pause, told = time.monotonic(), _FIRST_PAUSE, False
        while True:
            try:
                answer = request()
            except (AlreadyExistsError, PreconditionError):
                raise
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise self._forbidden(error) from None
            except (BaseError, FileNotFoundError, OSError, TimeoutError) as error:
                reason = self._reason(error)
                if reason is None:
                    self._met = True
                    raise
                self._require_reachable(error, reason)
                if time.monotonic() - begun > self.patience:
                    raise StorageError(
                        f"'{self.address}' did not answer for {duration(self.patience)} ({reason}): look at the "
                        "network and the endpoint; then the same command goes on where it stopped."
                    ) from None
                at_once = time.monotonic() - begun < _AT_ONCE and pause == _FIRST_PAUSE
                if not told and not at_once:  # the first try again is nothing to speak of
                    told = True
                    self.tell(
                        f"'{self.address}' does not answer ({reason}): trying again, at most {duration(self.patience)}"
                    )
                time.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if told:
                    self.tell(f"'{self.address}' answers again")
                self._met = True
                return answer

    def _require_reachable(self, error: Exception, reason: str) -> None:
        """Raise StorageError where waiting would not help: no TLS there, or no such host, which has never answered."""
        text = str(error)
        if (
            "InvalidContentType" in text
            or "InvalidCertificate" in text
            or ("dns error" in text and not self._met)
        ):
            named = endpoint_of(self.address) or SCHEMES[self.address.scheme]
            raise StorageError(
                f"'{self.address}' cannot be reached at {named} ({reason}): mend the endpoint in the environment, see "
                "docs/cloud.md."
            ) from None

    def _forbidden(self, error: Exception) -> ForbiddenError:
        code = _code(error)
        if code in ("AccessDenied", ""):
            return ForbiddenError(
                f"The credentials do not allow this in '{self.address}'{f' ({code})' if code else ''}: they need to "
                "list, read, put and delete objects there, or only to list and read where nothing is made."
            )
        return ForbiddenError(
            f"The credentials for '{self.address}' are wrong ({code}): set them in the environment, see docs/cloud.md."
        )

    def _reason(self, error: Exception) -> str | None:
        """Return why an endpoint did not answer; None for an object that is not there.

        Raises:
            StorageError: trying again would not help.
        """
        from obstore.exceptions import GenericError

        text, code = str(error), _code(error)
        if code in ("NoSuchBucket", "ContainerNotFound") or "bucket does not exist" in text:
            raise StorageError(
                f"There is no {self.address.noun} '{self.address.bucket}' ({self.address.scheme}://): make it, or mend "
                "the address."
            ) from None
        if isinstance(error, FileNotFoundError):
            return None
        if any(sign in text for sign in _NO_CREDENTIALS):
            raise ForbiddenError(
                f"There are no credentials for '{self.address}': set them in the environment, see docs/cloud.md."
            ) from None
        status = re.search(r"status code: (\d{3})", text)
        if status is not None and status[1] == "416":
            raise FileNotFoundError("the object is shorter than what was asked for")
        known = isinstance(error, (GenericError, OSError, TimeoutError))
        if not known or (status is not None and status[1] not in _PASSING):
            raise StorageError(
                f"'{self.address}' refused a request ({code or type(error).__name__}: {_first_line(error)})."
            ) from None
        return f"{status[1]} {code}".strip() if status else _short(text)


class _UnfitError(Exception):
    """What was fetched is not what was expected."""


_PASSING = ("408", "409", "429", "500", "502", "503", "504")
_NO_CREDENTIALS = ("169.254.169.254", "metadata.google.internal", "InstanceCredential", "MissingCredentials")


def _version(meta: Any) -> Version:
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}


def _code(error: Exception) -> str:
    """Return the code of a service's answer, such as AccessDenied."""
    match = re.search(r"<Code>(\w+)</Code>", str(error))
    return match[1] if match else ""


def _first_line(error: Exception) -> str:
    if not str(error):
        return type(error).__name__
    line = str(error).splitlines()[0]
    return re.sub(r"^Generic \w+ error: ", "", line).rstrip(".")[:200]  # the client's name of any service


def _short(text: str) -> str:
    """Return what failed: what the system says of it, else the end of the first line."""
    if "InvalidContentType" in text:
        return "https:// where the server speaks http://"
    certificate = re.search(r"InvalidCertificate\(\s*(\w+)", text)
    if certificate is not None:
        return f"its certificate: {certificate[1]}"
    causes = re.findall(r'(?:error|message): "([^"]+)"', text)
    if causes:
        return str(causes[-1])[:120]
    return text.splitlines()[0].rpartition(" - ")[2][:120] if text else "no answer"
