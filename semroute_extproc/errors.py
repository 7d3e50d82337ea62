"""Every error that the package raises on purpose, and the exit statuses (see `cli.exits`).

SemrouteError
├── ConfigError            the configuration cannot be used
├── BundleError            a bundle is missing, changed or of another format
├── ArtifactError          a strategy's artifact, calibration or profile cannot be used
├── BadBody                a request body cannot be read as its API says
├── BodyTooLarge           a body is over its limit, as sent or once decompressed
├── UnsupportedEncoding    a content-encoding that cannot be decoded
├── EncoderUnavailable     no signals in time
├── EndpointError          a model's endpoint gave no usable answer
└── DataError              a training or evaluation file cannot be used
"""

import enum

from semroute_extproc.outcome import Cause


class Exit(enum.IntEnum):
    """The exit statuses; docs/errors.md shows this table. Those above 2 come from sysexits.h."""

    OK = 0  # done
    ROWS = 1  # done, but some rows were bad, a check found a difference, or there are warnings
    USAGE = 2  # wrong usage of the command line
    DATA = 65  # an input file cannot be used: data, artifact, profile or calibration
    UNAVAILABLE = 69  # a Python package, an endpoint, a socket or a working GPU is missing
    CONFIG = 78  # the configuration, the bundle or the device it asks for cannot be used: do not restart


class SemrouteError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(SemrouteError):
    """The configuration cannot be used; each problem is one line with its location."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class BundleError(SemrouteError):
    """A bundle that is missing, tampered with or of another format; the message names the file."""


class ArtifactError(SemrouteError):
    """A strategy's artifact or a profile that cannot be used; the message names the file."""


class DataError(SemrouteError):
    """A training or evaluation file that cannot be used; the message is `file:row:column: problem`."""


class BadBody(SemrouteError):
    """A body that cannot be read as a request of its API."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(f"the request body cannot be read: {cause.value} {detail}".rstrip())
        self.cause = cause


class BodyTooLarge(SemrouteError):
    """A body over `limit` bytes, as sent or decompressed."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the request body is larger than {limit} bytes")
        self.limit = limit


class UnsupportedEncoding(SemrouteError):
    """A content-encoding that cannot be decoded."""

    def __init__(self, encoding: str) -> None:
        supported = "gzip, deflate, zstd, br or none"
        super().__init__(f"content-encoding {encoding!r} is not supported; send {supported}")


class EncoderUnavailable(SemrouteError):
    """No signals for this request: the cause is DEADLINE, OVERLOADED, ERROR, CLOSED, NO_TEXT or REMOTE_*."""

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(f"the encoder gave no signals: {cause.value}")
        self.cause, self.detail = cause, detail


class EndpointError(SemrouteError):
    """No usable answer from a model's endpoint.

    `reason` is `setup`, `timeout`, `connection`, `http`, `unreadable` or a judge's `no_label`; `status` and
    `retry_after` (seconds) are those of an `http` answer.
    """

    def __init__(self, reason: str, detail: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.status = status
        self.retry_after = retry_after
