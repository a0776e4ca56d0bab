"""A stand-in for the object store that keeps its rules: moto, with the identities of SeaweedFS' own configuration file.

Who shows no key, a wrong secret, or asks for what its identity may not, is refused.
"""

import json
import sys
from pathlib import Path

from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.models import IAMBackend, iam_backends
from moto.server import main

# An action of SeaweedFS, in the words of S3; behind each the resources, of a bucket `{0}`.
MEANS = {
    "Read": (["s3:GetObject*", "s3:HeadObject", "s3:GetBucketLocation"], ["{0}/*", "{0}"]),
    "Write": (["s3:PutObject*", "s3:DeleteObject*", "s3:*Multipart*", "s3:ListParts"], ["{0}/*", "{0}"]),
    "List": (["s3:ListBucket*", "s3:HeadBucket"], ["{0}"]),
    "Tagging": (["s3:*Tagging"], ["{0}/*"]),
    "Admin": (["s3:*"], ["{0}", "{0}/*"]),
}


def statement(action: str) -> dict[str, object]:
    """`Read:data` as a statement of an IAM policy; without a bucket it is for all of them."""
    name, _, bucket = action.partition(":")
    words, places = MEANS[name]
    return {"Effect": "Allow", "Action": words, "Resource": [f"arn:aws:s3:::{p.format(bucket or '*')}" for p in places]}


def admit(identities: list[dict[str, object]]) -> None:
    iam: IAMBackend = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for identity in identities:
        name = str(identity["name"])
        iam.create_user("aws", name, tags=[])
        policy = {"Version": "2012-10-17", "Statement": [statement(a) for a in identity["actions"]]}  # type: ignore[union-attr]
        iam.put_user_policy(name, "actions", json.dumps(policy))
        for given in identity.get("credentials", []):  # type: ignore[union-attr]
            key = iam.create_access_key(name)
            key.access_key_id, key.secret_access_key = given["accessKey"], given["secretKey"]


if __name__ == "__main__":
    import moto.settings

    admit(json.loads(Path(sys.argv[1]).read_text())["identities"])
    moto.settings.INITIAL_NO_AUTH_ACTION_COUNT = 0
    main(["--host", "0.0.0.0", "--port", *(sys.argv[2:] or ["8333"])])
