"""Objects of data sets: which may be asked for, and the signature with which the store gives them to the gateway.

The gateway has no key of the store. The door signs each request that it lets through, for that one object and a quarter of an
hour at most, with a key that may read the bucket of data sets and nothing else; who reaches the store without a signature gets nothing.
"""

import re

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from .policy import path_of

OBJECT = re.compile(r"/objects/(?P<key>files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?)")
SIGNED = ("Authorization", "X-Amz-Date", "X-Amz-Content-SHA256")
REGION = "us-east-1"


class Objects:
    """Args: bucket: URL of the bucket as the gateway calls it; key, secret: of an identity that may read it."""

    def __init__(self, bucket: str, key: str, secret: str) -> None:
        self._bucket, self._signer = bucket.rstrip("/"), S3SigV4Auth(Credentials(key, secret), "s3", REGION)

    def signed(self, method: str, key: str) -> dict[str, str]:
        """What the gateway must show the store to get this object."""
        request = AWSRequest(method, f"{self._bucket}/{key}")
        self._signer.add_auth(request)
        return {name: request.headers[name] for name in SIGNED}


def key_of(uri: str) -> str | None:
    """The object that a request to the gateway asks for; None when that is no object of a data set."""
    match = OBJECT.fullmatch(path_of(uri) or "")
    return match["key"] if match else None
