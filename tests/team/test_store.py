"""Who gets what from the object store: the Compose file's command and identities, and the worker gateway's signature for the gateway."""

import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import grpc
import httpx
import pytest
from botocore.exceptions import ClientError
from fixtures.object_store import free_ports

from deploy.compose import secrets
from serving.worker_gateway.object_signing import ObjectSigner
from team import compose

ENV = compose.dotenv(secrets.content())
DIGEST = "0123456789abcdef0123456789abcdef"
WEED = str(Path(sys.executable).with_name("weed"))
KEY = f"files/md5/{DIGEST[:2]}/{DIGEST[2:]}"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="SeaweedFS is installed on Linux only")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Its address, with the bucket of data sets and one object in it."""
    folder, team = tmp_path_factory.mktemp("store"), compose.read(ENV)
    for config in team["services"]["store"]["configs"]:
        text = team["configs"][config["source"]]["content"]
        (folder / Path(config["target"]).name).write_text(text.replace("/etc/seaweedfs", str(folder)))
    (folder / "data").mkdir()
    ports = free_ports(4)
    with (folder / "log").open("wb") as log:
        asked = [WEED, "-logtostderr=true", *command(team, folder, *ports)]
        process = subprocess.Popen(asked, cwd=folder, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{ports[0]}"
        until = time.monotonic() + 60
        while not healthy(address):
            assert process.poll() is None and time.monotonic() < until, (folder / "log").read_text()[-2000:]
            time.sleep(0.2)
        for bucket in ("mlflow", "data"):
            client(address, "ADMIN").create_bucket(Bucket=bucket)
        client(address, "DATA").put_object(Bucket="data", Key=KEY, Body=b"PAR1")
        yield address
    finally:
        process.kill()  # it would take half a minute to say goodbye
        process.wait()


def command(team, folder, s3, *inner):
    """The service's own, with ports and folders of this test."""
    said = [a.replace("=/data", f"={folder}/data") for a in team["services"]["store"]["command"]]
    said = [a.replace("/etc/seaweedfs", str(folder)).replace("-s3.port=8333", f"-s3.port={s3}") for a in said]
    parts = ("master", "volume", "filer")
    return said + [f"-{part}.port={port}" for part, port in zip(parts, inner, strict=True)]


def healthy(address):
    try:
        return httpx.get(f"{address}/healthz").status_code == 200
    except httpx.TransportError:
        return False


def client(address: str, who: str):
    return boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id=ENV[f"CLIPFT_STORE_{who}_KEY"],
        aws_secret_access_key=ENV[f"CLIPFT_STORE_{who}_SECRET"],
    )  # fmt: skip


def test_an_object_is_given_for_the_worker_gateways_signature_and_for_nothing_else(store):
    signer = ObjectSigner(f"{store}/data", ENV["CLIPFT_STORE_READER_KEY"], ENV["CLIPFT_STORE_READER_SECRET"])
    thing = f"{store}/data/{KEY}"
    assert httpx.get(thing, headers=signer.sign("GET", KEY)).content == b"PAR1"
    assert httpx.head(thing, headers=signer.sign("HEAD", KEY)).status_code == 200
    assert httpx.get(thing, headers=signer.sign("GET", KEY) | {"Range": "bytes=0-1"}).content == b"PA"
    refused = {
        "nobody's": httpx.get(thing),
        "another object's": httpx.get(thing, headers=signer.sign("GET", KEY[::-1])),
        "another method's": httpx.put(thing, headers=signer.sign("GET", KEY), content=b"x"),
        "a reader's that writes": httpx.put(thing, headers=signer.sign("PUT", KEY)),
        "with another secret": httpx.get(
            thing, headers=ObjectSigner(f"{store}/data", ENV["CLIPFT_STORE_READER_KEY"], "guessed").sign("GET", KEY)
        ),
    }
    assert {how: answer.status_code for how, answer in refused.items()} == dict.fromkeys(refused, 403)
    assert client(store, "DATA").get_object(Bucket="data", Key=KEY)["Body"].read() == b"PAR1"


@pytest.mark.parametrize(("who", "other"), [("MLFLOW", "data"), ("DATA", "mlflow"), ("READER", "mlflow")])
def test_each_key_opens_its_own_bucket_only(store, who, other):
    there = client(store, who)
    for ask in (
        lambda: there.list_objects_v2(Bucket=other),
        lambda: there.get_object(Bucket=other, Key=KEY),
        lambda: there.put_object(Bucket=other, Key="x", Body=b"x"),
        lambda: there.create_bucket(Bucket="more"),
    ):
        with pytest.raises(ClientError, match="403|AccessDenied"):
            ask()


def pem(kind, der):
    return f"-----BEGIN {kind}-----\n{der}\n-----END {kind}-----\n".encode()


CERTIFICATE = pem("CERTIFICATE", ENV["CLIPFT_STORE_PARTS_CERTIFICATE"])
PRIVATE = pem("PRIVATE KEY", ENV["CLIPFT_STORE_PARTS_KEY"])
WHO = {
    "anybody": None,
    "with TLS, and no certificate of its own": grpc.ssl_channel_credentials(CERTIFICATE),
    "one of the parts": grpc.ssl_channel_credentials(CERTIFICATE, PRIVATE, CERTIFICATE),
}


@pytest.mark.parametrize("who", WHO)
def test_only_the_stores_own_parts_speak_at_its_inner_port(store, who):
    """They tell one another about identities there: whoever is heard could make itself one."""
    place = f"localhost:{urlsplit(store).port + 10_000}"
    with grpc.secure_channel(place, WHO[who]) if WHO[who] else grpc.insecure_channel(place) as channel:
        put = channel.unary_unary("/messaging_pb.SeaweedS3IamCache/PutIdentity")
        asked = message(message(who.encode(), message(b"me", b"mine"), b"Admin"))
        me = boto3.client(
            "s3", endpoint_url=store, region_name="us-east-1", aws_access_key_id="me", aws_secret_access_key="mine"
        )
        if who == "one of the parts":  # so it is a wrong certificate that shuts the others out, and not a wrong address
            put(asked, timeout=10)
            assert {b["Name"] for b in me.list_buckets()["Buckets"]} == {"data", "mlflow"}
        else:
            with pytest.raises(grpc.RpcError) as refused:
                put(asked, timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
            with pytest.raises(ClientError, match="InvalidAccessKeyId"):
                me.list_buckets()


def message(*fields):
    """A message of protocol buffers: its fields 1, 2, … as bytes."""
    return b"".join(bytes([number << 3 | 2, len(field)]) + field for number, field in enumerate(fields, 1))
