"""`.env` of the team's deployment: every secret generated, once, readable by its owner only."""

import argparse
import base64
import os
import secrets
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from clipft_tasks.core.errors import ClipftError
from clipft_tasks.core.files import atomic_write
from clipft_tasks.core.settings import RENAMED

FRONT = {"AIRFLOW": 8080, "MLFLOW": 5050, "SERVER": 8800, "DATA": 8090, "GRAFANA": 3000}
SECRETS = (
    "GATEWAY_SECRET", "GATEWAY_TOKEN", "SERVER_TOKEN", "ALERT_TOKEN", "JWT_SECRET", "SESSION_SECRET", "GRAFANA_SECRET",
    "POSTGRES_PASSWORD", "AIRFLOW_DB_PASSWORD", "MLFLOW_DB_PASSWORD", "TUNING_DB_PASSWORD",
    "STORE_ADMIN_SECRET", "STORE_MLFLOW_SECRET", "STORE_DATA_SECRET", "STORE_READER_SECRET",
)  # fmt: skip
KEYS = ("STORE_ADMIN_KEY", "STORE_MLFLOW_KEY", "STORE_DATA_KEY", "STORE_READER_KEY")
PARTS = ("STORE_PARTS_KEY", "STORE_PARTS_CERTIFICATE")  # with which the store's inner parts know one another
LOCAL = ("localhost", "127.0.0.1", "::1")
YEARS = 30  # nobody sees this certificate, and nobody would see it run out


def content(host: str = "localhost", tls: bool = False, plain: bool = False) -> str:
    """The text of a new `.env` for a team whose people and workers reach the gateway by the name `host`.

    Ports are published to this host alone, unless they speak TLS or it is asked for in so many words (`plain`).
    """
    scheme = "https" if tls else "http"
    lines = [
        "# Made by `make team-env`. Secrets of this installation: keep this file, back it up, show it to nobody.",
        f"CLIPFT_SITE={host if tls else 'http://'}",
        f"CLIPFT_PUBLISH={'0.0.0.0' if tls or plain else '127.0.0.1'}",
        *(f"CLIPFT_{name}_ADDRESS={scheme}://{host}:{port}" for name, port in FRONT.items()),
        "CLIPFT_TEAM_USER=admin",
        f"CLIPFT_TEAM_PASSWORD={secrets.token_urlsafe(15)}",
        # Fernet wants exactly 32 bytes, padded.
        f"CLIPFT_FERNET_KEY={base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()}",
        *(f"CLIPFT_{name}={secrets.token_urlsafe(36)}" for name in SECRETS),
        *(f"CLIPFT_{name}={secrets.token_hex(10)}" for name in KEYS),
        *(f"CLIPFT_{name}={base64.b64encode(der).decode()}" for name, der in zip(PARTS, key_and_certificate(), strict=True)),
    ]
    return "\n".join(lines) + "\n"


def key_and_certificate() -> tuple[bytes, bytes]:
    """A private key and a certificate that trusts itself alone, for both ends of the store's inner connections (DER)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=365 * YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()), made.public_bytes(Encoding.DER)


def write(path: Path, host: str, tls: bool, plain: bool = False) -> str:
    """Make `.env`, or bring that of an older release up to date: names of today, and the secrets that have come since; says what
    was done.

    Raises ClipftError when there is one that lacks nothing: its secrets are in the databases already.
    """
    new = content(host, tls, plain)
    try:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
        done = f"Made {path}. `make team-up` starts the team's deployment; its user and password stand there."
        if host not in LOCAL and not tls and not plain:
            done += (
                " Without TLS it is published to this host alone. For others make it anew with TLS=1, or with PLAIN=1 where "
                "something else encrypts what goes over the network."
            )
    except FileExistsError:
        renamed = _rename(path)
        have = {line.partition("=")[0] for line in path.read_text().splitlines()}
        wanted = {f"CLIPFT_{name}" for name in (*SECRETS, *KEYS, *PARTS)} - have
        if renamed and not wanted:
            return renamed
        if not wanted:
            raise ClipftError(
                f"{path}",
                "it is there already, and the databases know its secrets",
                "Edit it, or move it away to begin anew.",
                code="stack.secrets_exist",
            ) from None
        new = "\n" + "\n".join(line for line in new.splitlines() if line.partition("=")[0] in wanted) + "\n"
        file = path.open("a")
        added = f"Added to {path} what it lacked: {', '.join(sorted(wanted))}. What was there is as it was."
        done = f"{renamed} {added}" if renamed else added
    with file:
        file.write(new)
    return done


def _rename(path: Path) -> str:
    """Give settings that an earlier release called otherwise their name of today, with their value; says which, "" for none."""
    lines, done = path.read_text().splitlines(keepends=True), []
    have = {line.partition("=")[0] for line in lines}
    for number, line in enumerate(lines):
        old, _, value = line.partition("=")
        new = RENAMED.get(old)
        if new and new not in have:
            lines[number] = f"{new}={value}"
            done.append(f"{old} to {new}")
    if done:
        atomic_write(path, "".join(lines), mode=0o600)
    return f"Renamed in {path}: {', '.join(done)}." if done else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="localhost", help="the name by which people and workers reach this host")
    parser.add_argument("--tls", action="store_true", help="TLS with a certificate for that name")
    parser.add_argument(
        "--plain", action="store_true", help="publish plain HTTP: passwords and tokens cross the network in clear"
    )
    parser.add_argument("--file", type=Path, default=Path(".env"))
    asked = parser.parse_args()
    try:
        print(write(asked.file, asked.host, asked.tls, asked.plain))
    except ClipftError as error:
        sys.exit(f"Error: {error.line}")


if __name__ == "__main__":
    main()
