"""The worker gateway: one-time codes, secrets that can be revoked, and what each worker may ask of whom."""

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

import jwt
import pytest
from fixtures.errors import refuses
from fixtures.gateway import MASTER, control_plane
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.worker_gateway import policy
from serving.worker_gateway.app import create_app
from serving.worker_gateway.settings import GatewaySettings
from serving.worker_gateway.store import WorkerStore


@pytest.fixture(scope="module")
def plane(tmp_path_factory):
    with control_plane(tmp_path_factory.mktemp("gateway")) as plane:
        yield plane


def token(secret: str, name: str, call: str, at: float = 0.0, **claims: object) -> str:
    """What `airflow edge worker` sends, by Airflow's own rules."""
    now = int(time.time() + at)
    content = {"aud": "api", "iat": now, "nbf": now, "exp": now + 30, "method": call} | claims
    return jwt.encode(content, secret, algorithm="HS512", headers={"kid": name})


def edge(plane, call: str, authorization: str):
    return plane.asked("edge", "POST", f"/edge_worker/v1/{call}", headers={"Authorization": authorization})


def test_a_code_is_looked_at_often_and_used_once(plane):
    code = plane.invite("desk-1")
    for _ in range(2):
        seen = plane.gateway.post("/v1/look", json={"code": code})
        assert seen.status_code == 200 and seen.json()["name"] == "desk-1" and "secret" not in seen.json()
    assert plane.gateway.post("/v1/join", json={"code": code}).json()["secret"]
    again = plane.gateway.post("/v1/join", json={"code": code})
    assert again.status_code == 403 and again.json()["code"] == "gateway.invalid_invitation"
    assert "clipft worker invite" in again.json()["detail"]


def test_a_code_ends_and_a_newer_one_replaces_it(tmp_path):
    store = WorkerStore(tmp_path)
    assert store.join(store.invite("late", hours=-1), "") is None
    first, second = store.invite("desk"), store.invite("desk")
    assert store.join(first, "") is None
    assert store.join(second, "cpu").name == "desk"
    assert second not in (tmp_path / "workers.db").read_bytes().decode(errors="replace")  # only its hash was kept


@pytest.mark.parametrize("old", ["worker-gateway/door.db", "door/door.db"])
def test_the_table_of_an_earlier_release_is_taken_over_with_what_is_not_yet_written_back(tmp_path, old):
    before = tmp_path / old
    WorkerStore(before.parent).invite("desk")
    for part in before.parent.glob("workers.db*"):  # with its log of writes
        part.rename(before.with_name(part.name.replace("workers.db", "door.db")))
    assert {p.name for p in before.parent.iterdir()} == {"door.db", "door.db-wal", "door.db-shm"}
    store = WorkerStore(tmp_path / "worker-gateway")
    assert store.invitations().keys() == {"desk"} and not before.exists()
    store.invite("other")
    assert WorkerStore(tmp_path / "worker-gateway").invitations().keys() == {"desk", "other"}


def test_only_the_operator_invites_and_names_are_plain(plane):
    assert plane.gateway.post("/admin/invitations", json={"name": "x"}).status_code == 403
    for name in ("", "Desk", "a/b", "-a", "a" * 41, "ü"):
        assert plane.operator.post("/admin/invitations", json={"name": name}).status_code == 422


def test_secrets_are_derived_so_a_restart_keeps_them_and_another_master_does_not(tmp_path):
    with control_plane(tmp_path) as plane:
        who = plane.join("desk")
    with control_plane(tmp_path) as plane:
        assert plane.gateway.get("/v1/me", auth=who).status_code == 200
    with control_plane(tmp_path, gateway_secret=MASTER[::-1]) as plane:
        assert plane.gateway.get("/v1/me", auth=who).status_code == 401
    with pytest.raises(ValueError, match="openssl rand"):
        create_app(GatewaySettings(gateway_home=tmp_path, gateway_secret="short", gateway_token="t"))


@pytest.mark.parametrize(
    "key", ["files/md5/01/23456789abcdef0123456789abcdef", "files/md5/01/23456789abcdef0123456789abcdef.dir"]
)
def test_an_object_is_signed_for_whoever_may_read_it_and_for_nobody_else(plane, key):
    who = plane.join("reader")
    signed = plane.asked("data", "GET", f"/objects/{key}", auth=who)
    assert signed.status_code == 200 and signed.headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=")
    assert signed.headers["x-amz-date"] and signed.headers["x-amz-content-sha256"]
    for refused in (plane.asked("data", "GET", f"/objects/{key}"), plane.asked("data", "PUT", f"/objects/{key}", auth=who)):
        assert refused.status_code in (401, 403) and "authorization" not in refused.headers
    assert "authorization" not in plane.asked("data", "GET", "/datasets.git/HEAD", auth=who).headers


@pytest.mark.parametrize(
    "path", ["", "files/md5/01", "files/md5/../mlflow/x", "files/md5/01/23%2f..", "runs/1/secret", "?list-type=2"]
)
def test_below_objects_nothing_is_signed_but_an_object(plane, path):
    answer = plane.asked("data", "GET", f"/objects/{path}", auth=("team", "of-people"))
    assert answer.status_code == 404 and "authorization" not in answer.headers


def test_a_revoked_worker_is_out_everywhere_at_once_and_back_with_another_secret(plane):
    who = plane.join("desk-2")
    ways = {
        "mlflow": lambda w: plane.asked("mlflow", "GET", "/api/2.0/mlflow/runs/get?run_id=1", auth=w),
        "data": lambda w: plane.asked("data", "GET", "/datasets.git/HEAD", auth=w),
        "edge": lambda w: edge(plane, "jobs/fetch/desk-2", token(w[1], w[0], "jobs/fetch/desk-2")),
        "itself": lambda w: plane.gateway.get("/v1/me", auth=w),
    }
    assert {name: way(who).status_code for name, way in ways.items()} == dict.fromkeys(ways, 200)
    assert plane.operator.delete("/admin/workers/desk-2").status_code == 200
    for way in ways.values():
        refused = way(who)
        assert refused.status_code == 403 and refused.json()["code"] == "gateway.revoked"
        assert "clipft worker invite desk-2" in refused.json()["detail"]
    now = plane.join("desk-2")
    assert {name: way(now).status_code for name, way in ways.items()} == dict.fromkeys(ways, 200)
    assert all(way(who).status_code in (401, 403) for way in ways.values())


def test_airflow_accepts_what_the_gateway_signs_and_nothing_that_a_worker_signs(plane):
    from airflow.api_fastapi.auth.tokens import JWKS, JWTValidator

    _, secret = plane.join("desk-3")
    sent = token(secret, "desk-3", "worker/desk-3")
    passed = edge(plane, "worker/desk-3", sent)
    jwks = JWKS(url=f"{plane.url}/gateway/jwks")
    validator = JWTValidator(
        jwks=jwks,
        issuer="clipft-worker-gateway",
        audience="api",
        algorithm=["EdDSA"],
        leeway=30,
        required_claims=frozenset({"iat", "exp"}),
    )
    assert asyncio.run(validator.avalidated_claims(passed.headers["Authorization"]))["sub"] == "desk-3"
    with pytest.raises(jwt.InvalidTokenError):
        asyncio.run(validator.avalidated_claims(sent))


def test_an_edge_token_is_for_one_call_of_one_worker(plane):
    _, secret = plane.join("desk-4")
    _, other = plane.join("desk-5")
    fetch = "jobs/fetch/desk-4"
    refused = {
        "another's name": edge(plane, "jobs/fetch/desk-5", token(secret, "desk-4", "jobs/fetch/desk-5")),
        "another call": edge(plane, "worker/desk-4", token(secret, "desk-4", fetch)),
        "signed by another": edge(plane, fetch, token(other, "desk-4", fetch)),
        "not signed": edge(plane, fetch, jwt.encode({"aud": "api", "method": fetch}, "", algorithm="none", headers={"kid": "desk-4"})),
        "unknown": edge(plane, fetch, token(secret, "nobody", fetch)),
        "nothing": edge(plane, fetch, ""),
        "no time": edge(plane, fetch, jwt.encode({"aud": "api", "method": fetch}, secret, algorithm="HS512", headers={"kid": "desk-4"})),
    }  # fmt: skip
    assert {k: v.status_code in (401, 403) for k, v in refused.items()} == dict.fromkeys(refused, True)
    assert refused["signed by another"].json()["code"] == "gateway.wrong_secret"
    run = "logs/push/clipft_finetune/finetune/manual__2026-11-27T22:00:00+00:00/1/-1"
    assert edge(plane, run, token(secret, "desk-4", run)).status_code == 200


@pytest.mark.parametrize(("at", "said"), [(-300, "300 s behind"), (300, "300 s ahead")])
def test_a_clock_that_is_wrong_is_called_that(plane, at, said):
    _, secret = plane.join("desk-6")
    refused = edge(plane, "worker/desk-6", token(secret, "desk-6", "worker/desk-6", at=at))
    assert refused.status_code == 403
    assert said in refused.json()["detail"].replace("299", "300").replace("301", "300") and "sntp" in refused.json()["detail"]


def test_paths_that_hide_something_are_refused_and_pages_pass_with_their_own_token(plane):
    for path in (
        "/edge_worker/v1/../v1/worker/x",
        "/edge_worker/%2e%2e/v1/worker/x",
        "//edge_worker/v1/worker/x",
        "/edge_worker/%252e",
    ):
        assert plane.asked("edge", "POST", path).status_code == 400
    page = plane.asked("edge", "GET", "/edge_worker/ui/worker", headers={"Authorization": "Bearer a-person"})
    assert page.status_code == 200 and page.headers["Authorization"] == "Bearer a-person"


ARTIFACT = "/api/2.0/mlflow-artifacts/artifacts/1/abc/artifacts"
MAY = [
    ("GET", "/api/2.0/mlflow/runs/get?run_id=1"),
    ("POST", "/api/2.0/mlflow/runs/create"),
    ("POST", "/api/2.0/mlflow/runs/log-batch"),
    ("POST", "/api/2.0/mlflow/runs/search"),
    ("POST", "/api/2.0/mlflow/runs/delete-tag"),  # a finished run forgets its checkpoint
    ("POST", "/api/2.0/mlflow/logged-models"),
    ("PATCH", "/api/2.0/mlflow/logged-models/m-1/tags"),
    ("GET", "/api/2.0/mlflow/registered-models/alias?name=clipft-general&alias=champion"),
    ("GET", "/api/2.0/mlflow/model-versions/get-download-uri?name=a&version=1"),
    ("PUT", f"{ARTIFACT}/model/weights.safetensors"),
    ("GET", f"{ARTIFACT}/model/weights.safetensors"),
    ("DELETE", f"{ARTIFACT}/checkpoints/step-00000012-abc.pt"),
    ("GET", "/mlflow/api/2.0/mlflow/runs/get"),
]
MAY_NOT = [
    ("POST", "/api/2.0/mlflow/registered-models/create"),
    ("POST", "/api/2.0/mlflow/registered-models/alias"),
    ("DELETE", "/api/2.0/mlflow/registered-models/alias"),
    ("POST", "/api/2.0/mlflow/model-versions/create"),
    ("POST", "/api/2.0/mlflow/model-versions/set-tag"),
    ("POST", "/api/2.0/mlflow/registered-models/create/api/2.0/mlflow/runs/create"),
    ("POST", "/api/2.0/mlflow/runs/delete"),
    ("POST", "/api/2.0/mlflow/experiments/delete"),
    ("DELETE", f"{ARTIFACT}/model/weights.safetensors"),
    ("DELETE", f"{ARTIFACT}/checkpoints/../model/weights.safetensors"),
    ("DELETE", f"{ARTIFACT}/checkpoints/%2e%2e/model/weights.safetensors"),
    ("GET", "/api/3.0/mlflow/gateway/secrets/list"),
    ("GET", "/"),
    ("GET", "/graphql"),
]


@pytest.mark.parametrize(("method", "uri", "allowed"), [(*c, True) for c in MAY] + [(*c, False) for c in MAY_NOT])
def test_what_a_worker_may_ask_of_mlflow(plane, method, uri, allowed):
    who = plane.join("desk-7")
    answer = plane.asked("mlflow", method, uri, auth=who)
    assert answer.status_code == (200 if allowed else 403), answer.text
    person = plane.asked("mlflow", method, uri, auth=("team", "of-people"))
    assert person.status_code == 200


DOTS = ["..", "%2e%2e", ".%2E", "%252e%252e", "%25252e.", "a%2f%2e%2e%2fb", "a%252f..%252fb", ".", "%2e"]
HOSTILE = [
    *DOTS,
    "",
    "%2f",
    "%252f",
    "%5c",
    "\\",
    "a%3fb",
    "?a",
    "#a",
    "%23",
    "%00",
    "%ff",
    "é",
    " ",
    ";",
    "api/2.0/mlflow/runs/create",
]


@st.composite
def requests(draw):
    """What may be asked, with parts put into its path that make it look like something else."""
    method, uri = draw(st.sampled_from([(method, uri) for method, uri in MAY if "?" not in uri]))
    parts = uri.split("/")
    for part in draw(st.lists(st.sampled_from(HOSTILE), max_size=3)):
        parts.insert(draw(st.integers(1, len(parts))), part)
    return method, "/".join(parts)


@given(requests())
@settings(max_examples=500)
def test_what_is_allowed_is_what_the_path_says_once_it_is_normalized(request):
    method, uri = request
    path = policy.normalized_path(uri)
    if path is None:
        assert not policy.is_allowed(method, uri)
    else:
        assert policy.normalized_path(quote(path)) == path
        assert policy.is_allowed(method, quote(path)) == policy.is_allowed(method, uri)


@given(requests())
@settings(max_examples=500)
def test_what_is_allowed_stays_where_it_points_however_often_it_is_decoded(request):
    method, uri = request
    if policy.is_allowed(method, uri):
        seen = uri.partition("?")[0].partition("#")[0]
        for _ in range(3):
            assert not {"..", "."} & set(seen.split("/")) and "//" not in seen and "\\" not in seen
            seen = unquote(seen)


def test_people_need_their_password_and_nobody_writes_data(plane, tmp_path):
    assert plane.asked("mlflow").headers["WWW-Authenticate"].startswith("Basic")
    assert plane.asked("mlflow", auth=("team", "wrong")).status_code == 401
    assert plane.asked("data", "PUT", "/objects/x", auth=("team", "of-people")).status_code == 403
    with control_plane(tmp_path, team_password=None) as closed:
        assert closed.asked("mlflow", auth=("team", "")).status_code == 401
    person = jwt.encode({"aud": "api"}, "x" * 64, algorithm="HS512", headers={"kid": "team"})
    assert edge(plane, "worker/team", person).status_code == 403


def test_trials_of_several_workers_share_one_study_over_http(tmp_path):
    import optuna

    from clipft_tasks.tuning.remote_storage import HttpStorage

    with control_plane(tmp_path, tuning_url=f"sqlite:///{tmp_path}/studies.db") as plane:
        where = f"{plane.url}/gateway/v1/studies"
        here, there = (HttpStorage(where, *plane.join(name)) for name in ("desk-a", "desk-b"))
        study = optuna.create_study(storage=here, study_name="s", direction="maximize")
        study.enqueue_trial({"x": 0.5})
        with pytest.raises(optuna.exceptions.DuplicatedStudyError):
            optuna.create_study(storage=there, study_name="s", direction="maximize")
        with pytest.raises(KeyError):
            optuna.load_study(storage=there, study_name="none")
        optuna.load_study(storage=there, study_name="s").optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        assert study.trials[0].params == {"x": 0.5} and [t.number for t in study.trials] == [0, 1]
        with refuses("gateway.not_allowed", "DeleteStudy"):
            optuna.delete_study(storage=here, study_name="s")
        with refuses("gateway.wrong_secret", "desk-a"):
            HttpStorage(where, "desk-a", "wrong").get_all_studies()


def test_who_guesses_is_not_told_who_has_joined(plane):
    name, _ = plane.join("known")
    _, gone = plane.join("gone")
    plane.operator.delete("/admin/workers/gone")
    said = set()
    for who in (name, "gone", "nobody"):
        answer = plane.asked("mlflow", uri="/health", auth=(who, "guessed"))
        said.add((answer.status_code, answer.json()["code"], answer.json()["detail"].replace(who, "WHO")))
    assert len(said) == 1
    assert plane.asked("mlflow", uri="/health", auth=("gone", gone)).json()["code"] == "gateway.revoked"


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b'{"code": "' + b"x" * 100_000 + b'"}', {}, 413),
        (iter([b'{"code": ', b'"x"}']), {}, 411),
        (b"[" * 50_000, {}, 400),
        (b'{"code": "\ud800"}', {}, 422),
        (b'{"code": NaN}', {}, 422),
    ],
    ids=["large", "chunked", "deep", "half a letter", "no number"],
)
def test_a_body_that_is_none_is_refused(plane, content, headers, status):
    answer = plane.gateway.post("/v1/look", content=content, headers={"Content-Type": "application/json"} | headers)
    assert answer.status_code == status and len(answer.content) < 2000


def test_a_worker_with_a_wrong_secret_does_not_look_alive(plane):
    name, _ = plane.join("quiet")
    assert plane.asked("mlflow", uri="/health", auth=(name, "wrong")).status_code == 401
    [worker] = [w for w in plane.operator.get("/admin/workers").json()["workers"] if w["name"] == name]
    assert worker["seen"] is None


def test_a_short_token_of_the_operator_is_refused_at_the_start(tmp_path):
    for token in ("", "1"):
        with pytest.raises(ValueError, match="GATEWAY_TOKEN"):
            create_app(GatewaySettings(gateway_home=tmp_path, gateway_secret=MASTER, gateway_token=token))


PACKAGE = "/api/2.0/mlflow-artifacts/artifacts/1/models/m-1/artifacts/package"


def test_a_models_files_are_written_once(tmp_path):
    class MLflow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there = [{"path": "open_clip_model.safetensors"}] if "models%2Fm-1%2Fartifacts%2Fpackage" in self.path else []
            body = json.dumps({"files": there}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), MLflow) as mlflow:
        threading.Thread(target=mlflow.serve_forever, daemon=True).start()
        with control_plane(tmp_path, mlflow_uri=f"http://127.0.0.1:{mlflow.server_port}") as plane:
            who = plane.join("desk")

            def put(uri: str, method: str = "PUT") -> int:
                return plane.asked("mlflow", method, uri, auth=who).status_code

            assert put(f"{PACKAGE}/open_clip_model.safetensors") == 403
            assert put(f"{PACKAGE}/open_clip_model.safetensors".replace("/artifacts/1", "/artifacts/%31")) == 403
            assert (
                put("/api/2.0/mlflow-artifacts/mpu/create/1/models/m-1/artifacts/package/open_clip_model.safetensors", "POST")
                == 403
            )
            assert put(f"{PACKAGE}/card.json") == 200
            assert put("/api/2.0/mlflow-artifacts/artifacts/1/runs/r/artifacts/checkpoints/open_clip_model.safetensors") == 200
            assert put(f"{PACKAGE}/open_clip_model.safetensors", "GET") == 200
            mlflow.shutdown()
            mlflow.server_close()
            assert put(f"{PACKAGE}/card.json") == 503  # what cannot be known is not let through
