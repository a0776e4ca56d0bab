"""Secrets that are derived from one, so that none is stored: each worker's own, and the key that the door signs with."""

import base64
import hashlib
import hmac
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

ISSUER, AUDIENCE, KEY = "clipft-door", "api", "door"
LEEWAY = 30  # seconds that two clocks may differ


class Keys:
    """Args: master: the installation's door secret, at least 32 characters."""

    def __init__(self, master: str) -> None:
        if len(master) < 32:
            raise ValueError("CLIPFT_DOOR_SECRET has fewer than 32 characters: make one with `openssl rand -hex 32`")
        self._master = master.encode()
        self._signing = Ed25519PrivateKey.from_private_bytes(self._derive("door's signature"))

    def secret_of(self, name: str, nonce: str) -> str:
        """The secret of a worker that joined with this nonce; another nonce, another secret."""
        return base64.urlsafe_b64encode(self._derive(f"worker {name} {nonce}", hashlib.sha512)).decode().rstrip("=")

    def jwks(self) -> dict[str, Any]:
        """The public half of the signing key, as Airflow reads it."""
        key = OKPAlgorithm.to_jwk(self._signing.public_key(), as_dict=True)
        return {"keys": [{**key, "kid": KEY, "alg": "EdDSA", "use": "sig"}]}

    def passes(self, name: str) -> str:
        """What Airflow's edge API accepts from `name`, for a minute."""
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": name, "iat": now, "nbf": now, "exp": now + 60}
        return jwt.encode(claims, self._signing, algorithm="EdDSA", headers={"kid": KEY})

    def _derive(self, what: str, how: Any = hashlib.sha256) -> bytes:
        return hmac.new(self._master, what.encode(), how).digest()
