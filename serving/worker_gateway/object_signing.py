"""Objects of data sets: which may be asked for, and the signature with which the store gives them to the reverse proxy.

The reverse proxy has no key of the store. The gateway signs each request that it lets through, for that one object and a quarter of
an hour at most, with a key that may read the bucket of data sets and nothing else; who reaches the store without a signature gets
nothing.
"""

import re

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from .policy import normalized_path

OBJECT = re.compile(r"/objects/(?P<key>files/md5/[0-9a-f]{2}/[0-9a-f]{30}(\.dir)?)")
SIGNED = ("Authorization", "X-Amz-Date", "X-Amz-Content-SHA256")
REGION = "us-east-1"


class ObjectSigner:
    """Signs requests to the object store.

    Args:
        bucket: URL of the bucket as the reverse proxy calls it.
        key, secret: of an identity that may read it.
    """

    def __init__(self, bucket: str, key: str, secret: str) -> None:
        self._bucket, self._signer = bucket.rstrip("/"), S3SigV4Auth(Credentials(key, secret), "s3", REGION)

    def sign(self, method: str, key: str) -> dict[str, str]:
        """The headers that the reverse proxy must send to get this object."""
        request = AWSRequest(method, f"{self._bucket}/{key}")
        self._signer.add_auth(request)
        return {name: request.headers[name] for name in SIGNED}


def object_key(uri: str) -> str | None:
    """The key of the object that a request asks for; None when that is no object of a data set."""
    match = OBJECT.fullmatch(normalized_path(uri) or "")
    return match["key"] if match else None
