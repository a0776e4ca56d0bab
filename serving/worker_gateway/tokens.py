"""Secrets that are derived from one, so that none is stored: each worker's own, and the key that the gateway signs with."""

import base64
import hmac
import time

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

ISSUER, AUDIENCE, KEY_ID = "clipft-worker-gateway", "api", "worker-gateway"
LIFETIME = 60  # seconds that a token for Airflow holds


class TokenIssuer:
    """Derives secrets and signs tokens.

    Args:
        master: the installation's gateway secret, at least 32 characters.
    """

    def __init__(self, master: str) -> None:
        if len(master) < 32:
            raise ValueError("CLIPFT_GATEWAY_SECRET has fewer than 32 characters: make one with `openssl rand -hex 32`")
        self._master = master.encode()
        self._signing = Ed25519PrivateKey.from_private_bytes(self._derive("gateway's signature", "sha256"))

    def worker_secret(self, name: str, nonce: str) -> str:
        """The secret of a worker that joined with this nonce; another nonce, another secret."""
        return base64.urlsafe_b64encode(self._derive(f"worker {name} {nonce}", "sha512")).decode().rstrip("=")

    def jwks(self) -> dict[str, object]:
        """The public half of the signing key, as Airflow reads it."""
        key = OKPAlgorithm.to_jwk(self._signing.public_key(), as_dict=True)
        return {"keys": [{**key, "kid": KEY_ID, "alg": "EdDSA", "use": "sig"}]}

    def issue_token(self, name: str) -> str:
        """What Airflow's edge API accepts from the worker `name`, for a minute."""
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": name, "iat": now, "nbf": now, "exp": now + LIFETIME}
        return jwt.encode(claims, self._signing, algorithm="EdDSA", headers={"kid": KEY_ID})

    def _derive(self, what: str, algorithm: str) -> bytes:
        return hmac.new(self._master, what.encode(), algorithm).digest()
