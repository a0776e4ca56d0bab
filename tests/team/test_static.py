"""docker-compose.yaml, the Dockerfile and every configuration file, without starting anything."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fixtures.errors import refuses

from clipft_tasks.core.settings import Settings
from deploy.compose import secrets
from serving.inference.settings import ServingSettings
from serving.worker_gateway.settings import GatewaySettings
from team import compose

PROJECT = compose.PROJECT
TEXT = (PROJECT / "docker-compose.yaml").read_text()
ENV = compose.dotenv(secrets.content())
SERVICES = compose.read(ENV)["services"]
OURS = {n for n, s in SERVICES.items() if "build" in s}
ROOT = {"store": "its image has no other user", "gateway": "its image's volumes are root's"}
DEPLOY = PROJECT / "deploy"


def called(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, cwd=PROJECT, timeout=120)


def accepts(*command: str, **env: str) -> str:
    done = called(*command, **env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


# The Compose file ----------------------------------------------------------------------------------------------------


def test_the_file_follows_the_compose_specification():
    accepts(
        str(Path(sys.executable).parent / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", "docker-compose.yaml"
    )


def test_a_security_linter_finds_only_what_is_explained():
    """Left are tags instead of digests (the Dockerfile says how to pin those) and the two users named in ROOT."""
    done = called(
        str(Path(sys.executable).parent / "compose-lint"), "check", "--format", "json", "--no-env", "docker-compose.yaml"
    )
    found = json.loads(done.stdout)
    found = found["findings"] if isinstance(found, dict) else found
    left = {f["rule_id"] for f in found if f["rule_id"] not in ("CL-0018", "CL-0019")}
    assert not left, [f for f in found if f["rule_id"] in left]
    assert {f["service"] for f in found if f["rule_id"] == "CL-0018"} == set(ROOT)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_bounded_watched_and_confined(name):
    service = SERVICES[name]
    image = service["image"].rpartition(":")
    assert image[0] and image[2] not in ("", "latest"), service["image"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] in ("unless-stopped", "on-failure:3")
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}
    assert "privileged" not in service and service.get("network_mode") is None
    assert (service["user"].split(":")[0] == "0") == (name in ROOT)
    assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name == "gateway" else [])
    check = service["healthcheck"]
    assert check.get("disable") is True if name == "airflow-init" else check["test"][0] == "CMD" and check["retries"]
    assert set(service["profiles"]) <= {"core", "monitoring", "cuda"}


def test_only_the_gateway_publishes_ports_and_only_to_this_host_by_default():
    assert [n for n, s in SERVICES.items() if s.get("ports")] == ["gateway"]
    without = compose.read({k: v for k, v in ENV.items() if k != "CLIPFT_PUBLISH"})
    assert all(p.startswith("127.0.0.1:") for p in without["services"]["gateway"]["ports"])


def test_networks_give_least_reach():
    networks = compose.raw()["networks"]
    assert {n for n, options in networks.items() if not options.get("internal")} == {"outside"}
    members = {n: {s for s, service in SERVICES.items() if n in service["networks"]} for n in networks}
    assert members["outside"] == {"gateway", "airflow-scheduler", "alertmanager", "worker-cuda"}
    assert members["storage"] == {"store", "mlflow", "airflow-init", "airflow-scheduler", "gateway"}
    assert "server" not in members["databases"] | members["storage"] and "gateway" not in members["databases"]
    assert len(SERVICES["server"]["networks"]) == 1, "its name must have one address a replica"


def test_no_secret_has_a_default_and_each_is_generated():
    asked = compose.variables(TEXT)
    secret = {n for n in asked if re.search(r"PASSWORD|SECRET|TOKEN|_KEY$|FERNET", n)}
    assert secret and all(asked[n] == {":?"} for n in secret), {n: asked[n] for n in secret if asked[n] != {":?"}}
    assert secret <= ENV.keys(), secret - ENV.keys()
    with pytest.raises(compose.MissingError, match="make team-env"):
        compose.read({})


def test_everything_in_env_is_asked_for():
    assert ENV.keys() <= compose.variables(TEXT).keys(), ENV.keys() - compose.variables(TEXT).keys()


def test_names_and_services_agree():
    """Whoever is spoken to by name is a service on a network that both have, at a port where it listens."""
    ports = {
        "postgres": 5432, "store": 8333, "mlflow": 5000, "airflow-api": 8080, "worker-gateway": 8070, "server": 8800, "gateway": 8880,
        "statsd": 9102, "prometheus": 9090, "alertmanager": 9093, "grafana": 3000,
    }  # fmt: skip
    for name, service in SERVICES.items():
        for value in service["environment"].values():
            for host, port in re.findall(r"://(?:[^@/]*@)?([a-z-]+):(\d+)", value):
                if host != "localhost" and (name != "airflow-init" or host in ("postgres", "store")):  # it asks nobody else
                    assert ports[host] == int(port), (name, value)
                    assert set(SERVICES[host]["networks"]) & set(service["networks"]), (name, host)
        for flag, port in zip(service.get("command") or [], (service.get("command") or [])[1:], strict=False):
            if flag in ("--port", "-p"):
                assert int(port) == ports[name], name
        for other in service.get("depends_on") or {}:
            assert set(SERVICES[other]["profiles"]) & set(service["profiles"]), f"{name} waits for {other}, of another profile"
    published = {int(p.rsplit(":", 1)[1]) for p in SERVICES["gateway"]["ports"]}
    sites = set(map(int, re.findall(r"^\{\$CLIPFT_SITE\}:(\d+)", (DEPLOY / "gateway" / "Caddyfile").read_text(), flags=re.M)))
    assert published == sites | {80} == set(secrets.FRONT.values()) | {80}
    for name, port in secrets.FRONT.items():
        assert ENV[f"CLIPFT_{name}_ADDRESS"].endswith(f":{port}")
    upstreams = SERVICES["gateway"]["environment"]["CLIPFT_SERVER_UPSTREAMS"].split()
    assert len(upstreams) >= int(SERVICES["server"]["deploy"]["replicas"])
    assert upstreams == [f"clipft-server-{n}:8800" for n in range(1, len(upstreams) + 1)]
    assert compose.raw()["name"] == "clipft", "container names begin with it"
    signed = GatewaySettings.model_fields["store_bucket"].default  # what the worker gateway signs is what the gateway asks
    host, _, bucket = signed.removeprefix("http://").partition("/")
    asked = (DEPLOY / "gateway" / "Caddyfile").read_text()
    assert f"header_up Host {host}\n" in asked and f"reverse_proxy {host} " in asked and f"rewrite * /{bucket}/files" in asked


def known_to_airflow() -> set[str]:
    from airflow.configuration import conf
    from airflow.providers.edge3.get_provider_info import get_provider_info

    described = conf.configuration_description | get_provider_info()["config"]
    return {f"AIRFLOW__{section}__{key}".upper() for section, body in described.items() for key in body["options"]}


def test_every_variable_exists_in_the_software_that_reads_it():
    from serving.worker_gateway import app as gateway

    airflow = known_to_airflow()
    ours = {f"CLIPFT_{name}".upper() for name in Settings.model_fields}
    ours |= {f"CLIPFT_SERVING_{name}".upper() for name in ServingSettings.model_fields}
    read = "".join(p.read_text() for folder in (Path(gateway.__file__).parent, DEPLOY / "compose") for p in folder.glob("*.py"))
    literal = "".join(p.read_text() for p in (PROJECT / "clipft_tasks").rglob("*.py"))
    foreign = ("POSTGRES_", "GF_", "AWS_", "MLFLOW_", "XDG_")
    for name in OURS | {"gateway"}:
        for variable in SERVICES[name]["environment"]:
            if variable.startswith("AIRFLOW__"):
                assert variable in airflow, (name, variable)
            elif variable.startswith("CLIPFT_") and name == "gateway":
                assert f"{{${variable}}}" in (DEPLOY / "gateway" / "Caddyfile").read_text(), variable
            elif variable.startswith("CLIPFT_"):
                short = variable.removeprefix("CLIPFT_").lower()
                assert variable in ours or variable in read + literal or re.search(rf"\b{short}\b", read), (name, variable)
            else:
                assert variable.startswith(foreign) or variable == "FORWARDED_ALLOW_IPS", (name, variable)
    import mlflow.environment_variables as mlflow

    for variable in SERVICES["mlflow"]["environment"]:
        assert not variable.startswith("MLFLOW_") or hasattr(mlflow, variable) or variable == "MLFLOW_BACKEND_STORE_URI", (
            variable
        )


# Secrets -------------------------------------------------------------------------------------------------------------


def test_env_is_made_once_for_its_owner_only(tmp_path):
    command = [sys.executable, "-m", "deploy.compose.secrets", "--file", str(tmp_path / ".env")]
    first = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    made = (tmp_path / ".env").read_text()
    assert first.returncode == 0 and (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    again = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert again.returncode and "there already" in again.stderr and (tmp_path / ".env").read_text() == made
    other = compose.dotenv(secrets.content())
    same = {k for k, v in compose.dotenv(made).items() if other[k] == v}
    assert not [k for k in same if re.search(r"PASSWORD|SECRET|TOKEN|_KEY$", k)], "two installations share a secret"


def test_an_older_env_gets_the_secrets_that_have_come_since_and_keeps_its_own(tmp_path):
    path = tmp_path / ".env"
    older = [line for line in secrets.content().splitlines() if not line.startswith("CLIPFT_STORE_READER_")]
    path.write_text("\n".join(older))
    said = secrets.write(path, "localhost", tls=False)
    made = compose.dotenv(path.read_text())
    assert path.read_text().startswith("\n".join(older)) and made.keys() == ENV.keys()
    assert "CLIPFT_STORE_READER_KEY, CLIPFT_STORE_READER_SECRET" in said and made["CLIPFT_STORE_READER_SECRET"]
    with refuses("stack.secrets_exist", path):
        secrets.write(path, "localhost", tls=False)


def test_an_older_env_gets_the_names_of_today_and_keeps_their_values(tmp_path):
    path = tmp_path / ".env"
    today = secrets.content()
    path.write_text(today.replace("CLIPFT_GATEWAY_", "CLIPFT_DOOR_"))
    path.chmod(0o600)
    said = secrets.write(path, "localhost", tls=False)
    assert path.read_text() == today and path.stat().st_mode & 0o777 == 0o600
    assert "CLIPFT_DOOR_SECRET to CLIPFT_GATEWAY_SECRET" in said and "Added" not in said
    with refuses("stack.secrets_exist", path):
        secrets.write(path, "localhost", tls=False)


def test_the_volume_of_the_worker_gateway_is_that_of_earlier_releases():
    assert compose.read(ENV)["volumes"]["worker-gateway"] == {"name": "clipft_door"}


def test_with_a_name_and_tls_everything_is_https():
    env = compose.dotenv(secrets.content("clipft.example.org", tls=True))
    addresses = [v for k, v in env.items() if k.endswith("_ADDRESS")]
    assert len(addresses) == 5 and all(a.startswith("https://clipft.example.org:") for a in addresses)
    assert env["CLIPFT_SITE"] == "clipft.example.org" and env["CLIPFT_PUBLISH"] == "0.0.0.0"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "clipft.example.org"])
def test_plain_http_is_published_to_this_host_alone_unless_it_is_asked_for(host, tmp_path):
    assert compose.dotenv(secrets.content(host))["CLIPFT_PUBLISH"] == "127.0.0.1"
    assert compose.dotenv(secrets.content(host, plain=True))["CLIPFT_PUBLISH"] == "0.0.0.0"
    said = secrets.write(tmp_path / ".env", host, tls=False)
    assert ("this host alone" in said) == (host == "clipft.example.org")


def test_the_commands_of_the_page_do_what_it_says(tmp_path):
    """With a `docker` that only writes down what it is asked, in a copy of what make needs."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    (tmp_path / "docker").write_text('#!/bin/sh\necho "$@" >> asked\n')
    (tmp_path / "docker").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", *words], cwd=tmp_path, env=env, capture_output=True, text=True)

    page = (PROJECT / "docs" / "team.md").read_text()
    assert re.findall(r"^make (team-\w+)", page, flags=re.M) == ["team-env", "team-up", "team-status", "team-down"]
    refused = make("team-up")
    assert refused.returncode and "make team-env" in refused.stdout and not (tmp_path / "asked").exists()
    (tmp_path / ".env").write_text(secrets.content())
    assert make("team-up").returncode == 0 and make("team-down").returncode == 0
    assert make("team-up", "PROFILES=core cuda").returncode == 0
    asked = (tmp_path / "asked").read_text().splitlines()
    both = "compose --profile core --profile monitoring"
    status = [f"{both} ps", f"{both} exec airflow-scheduler clipft doctor"]
    assert asked[:4] == [f"{both} up --build --detach --remove-orphans", *status, f"{both} down"]
    assert asked[4].startswith("compose --profile core --profile cuda up")


# Images --------------------------------------------------------------------------------------------------------------


def test_a_linter_has_nothing_to_say_about_the_dockerfile():
    if not shutil.which("npx"):
        pytest.skip("npx is not installed")
    done = called(
        "npx", "--yes", "--package", "dockerfile-utils@0.16.3", "dockerfile-utils", "lint", "deploy/images/Dockerfile"
    )
    assert done.returncode == 0 and not done.stdout.strip(), done.stdout + done.stderr


def test_images_are_pinned_slim_and_unprivileged():
    stages = compose.images()
    targets = {s["build"]["target"] for s in SERVICES.values() if "build" in s}
    assert targets == {"airflow", "mlflow", "serving", "worker"} and targets <= stages.keys()
    assert all(stages[t]["user"] == "10001:0" for t in targets)
    assert set(stages["mlflow"]["copies"]) == {"deploy/compose/healthcheck.py"}
    assert set(stages["serving"]["copies"]) == {"clipft_tasks", "serving", "deploy/compose/healthcheck.py"}
    assert not {"serving", "tests", "bench"} & set(stages["airflow"]["copies"])
    bases = re.findall(r"^FROM (\S+)", (DEPLOY / "images" / "Dockerfile").read_text(), flags=re.M)
    assert all(b in stages or re.search(r":\d+\.\d+\.\d+-", b) for b in bases), bases
    extras = set(re.findall(r'"\.\[([\w,]+)\]"', (DEPLOY / "images" / "Dockerfile").read_text()))
    there = re.findall(r"^(\w+) = \[", (PROJECT / "pyproject.toml").read_text(), flags=re.M)
    assert {e for group in extras for e in group.split(",")} <= set(there)


@pytest.mark.parametrize("name", sorted(n for n in OURS if any(":create_app" in w for w in SERVICES[n]["command"])))
def test_an_image_holds_what_its_server_imports(name, tmp_path):
    for copied in compose.images()[SERVICES[name]["build"]["target"]]["copies"]:
        (tmp_path / copied).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / copied).symlink_to(PROJECT / copied)
    modules = {word.partition(":")[0] for word in SERVICES[name]["command"] if re.fullmatch(r"[a-z_.]+:[A-Za-z_]+", word)}
    assert len(modules) == 2, modules  # the application, and how it speaks HTTP
    code = (
        "import importlib, sys\n"
        f"checkout, modules = {str(PROJECT)!r}, {sorted(modules)!r}\n"
        "sys.path[:] = [p for p in sys.path if p.rstrip('/') != checkout]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f)]\n"  # an installation that stands in for the image
        "for name in modules: importlib.import_module(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-1500:]


def test_volumes_have_the_right_owner_from_the_image():
    made = (DEPLOY / "images" / "Dockerfile").read_text()
    for name in OURS:
        for mount in SERVICES[name].get("volumes") or []:
            source, target, *_ = mount.split(":")
            assert not source.isidentifier() or target in made, f"{name}: {target} would be root's"


# Configuration files, each by its own program ------------------------------------------------------------------------


@pytest.mark.parametrize("site", [{}, {"CLIPFT_SITE": "clipft.example.org", "CLIPFT_TLS": "tls internal"}])
def test_caddy_accepts_the_gateway(site):
    env = SERVICES["gateway"]["environment"] | site
    config = str(DEPLOY / "gateway" / "Caddyfile")
    assert "Valid configuration" in accepts("caddy", "validate", "--adapter", "caddyfile", "--config", config, **env)


def test_prometheus_accepts_its_configuration(tmp_path):
    shutil.copy(DEPLOY / "prometheus" / "rules.yml", tmp_path)
    text = (DEPLOY / "compose" / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(text.replace("/etc/prometheus/", ""))
    assert "SUCCESS" in accepts("promtool", "check", "config", str(tmp_path / "prometheus.yml"))
    embedded = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    jobs = [[job["job_name"] for job in c["scrape_configs"]] for c in (yaml.safe_load(text), embedded)]
    assert jobs[0] == jobs[1], "rules and dashboards know jobs by name"


def test_alertmanager_accepts_its_configuration_which_is_the_embedded_one_but_for_addresses():
    accepts("amtool", "check-config", str(DEPLOY / "compose" / "alertmanager.yml"))
    text = (DEPLOY / "compose" / "alertmanager.yml").read_text()
    embedded = (DEPLOY / "alertmanager" / "alertmanager.yml").read_text()
    for name, value in {"AIRFLOW_ADDRESS": "http://airflow-api:8080", "TOKEN_FILE": "/etc/alertmanager/token"}.items():
        embedded = embedded.replace(name, value)
    assert text.splitlines()[1:] == embedded.splitlines()[1:]


def test_grafana_is_given_the_dashboards_and_their_data_source():
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"
    mounts = dict(m.split(":")[:2] for m in SERVICES["grafana"]["volumes"])
    path = yaml.safe_load((DEPLOY / "grafana/provisioning/dashboards/clipft.yml").read_text())["providers"][0]["options"][
        "path"
    ]
    dashboards = list((DEPLOY / "grafana").glob("*.json"))
    assert len(dashboards) == 3
    for file in dashboards:
        assert mounts[f"./deploy/grafana/{file.name}"] == f"{path}/{file.name}"
        uids = set(re.findall(r'"uid": "(\w+)"[^}]*"type": "prometheus"', file.read_text())) | set(
            re.findall(r'"type": "prometheus"[^}]*"uid": "(\w+)"', file.read_text())
        )
        assert uids <= {source["uid"]}, uids


def test_every_mounted_file_is_there():
    for service in SERVICES.values():
        for mount in service.get("volumes") or []:
            source = mount.split(":")[0]
            if source.startswith("./deploy") and "certificates" not in source:
                assert (PROJECT / source).exists(), source
