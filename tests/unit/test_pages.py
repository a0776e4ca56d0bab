"""The server's pages for people: whole without internet, and their scripts do what a person at them expects."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fastapi import FastAPI

from serving.inference.app import create_app

PROJECT = Path(__file__).resolve().parents[2]
PAGES = {"/": "playground.html", "/docs": "api.html"}

# What a person does at the playground, one step after the other; `look` keeps what is shown then.
VISIT = """
const seen = {}, look = name => seen[name] = { classes: elements.classes?.textContent, texts: elements.texts.value, said: elements.said.textContent,
  hidden: { answer: elements.answer.hidden, token: elements['token-row']?.hidden }, bars: (elements.classes?.children || []).map(r => r.children[1].children[0].style.width) }
const press = async (id, event = 'onclick') => { elements[id][event]({ preventDefault() { } }); await settle() }
const choose = () => elements.image.onchange({ target: { files: [new Blob(['x'], { type: 'image/png' })] } })
;(async () => {
  await settle(); look('opened')
  elements.domain.value = 'medical'; elements.domain.onchange(); look('other domain')
  choose(); await press('form', 'onsubmit'); look('answered')
  await press('right'); look('asked for the token')
  elements.token.value = 'secret'; await press('right'); look('judged')
  await press('words', 'onsubmit'); seen.similar = elements.similar.textContent
  choose(); look('another image')
  down = true; await press('form', 'onsubmit'); look('refused')
  elements.domain.onchange(); look('afterwards')
  console.log(JSON.stringify({ seen, sent }))
})()
"""
ANSWERS = """
let down = false
const models = [{ domain: 'industrial', version: '1', classes: ['cracked', 'whole'], similarity: 'cosine' }, { domain: 'medical', version: '7', classes: ['pneumonia', 'normal'], similarity: 'cosine' }]
globalThis.fetch = async (path, options = {}) => {
  const body = options.body instanceof FormData ? [...options.body.keys()] : options.body && JSON.parse(options.body)
  sent.push([path, body])
  const token = options.headers?.authorization, answer = (status, content) => ({ ok: status < 400, status, json: async () => content, headers: new Map([['x-clipft-answer-id', 'r1'], ['x-clipft-model-version', '7']]) })
  if (down) return answer(422, { detail: 'Image 1: it is no image.' })
  if (path === 'v1/models') return answer(200, models)
  if (path === 'v1/classify') return answer(200, { predictions: [{ label: 'normal', probability: 0.75, probabilities: { pneumonia: 0.25, normal: 0.75 }, scores: {} }] })
  if (path === 'v1/similarity') return answer(200, { similarity: [[-0.2, -0.1]] })
  if (path === 'v1/feedback') return token === 'Bearer secret' ? answer(200, { counted: true, version: '7' }) : answer(401, { detail: "Show the server's token." })
}
"""


@pytest.fixture(scope="module")
def app() -> FastAPI:
    return create_app()


def script(name: str, folder: str = "serving/inference") -> str:
    return re.search(r"<script>(.*?)</script>", (PROJECT / folder / name).read_text(), flags=re.S)[1]


def node(source: str, *options: str) -> str:
    program = shutil.which("node")
    if not program:
        pytest.skip("there is no node to run a page's script with")
    done = subprocess.run([program, *options, "-"], input=source, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("path", PAGES)
def test_a_page_asks_nobody_but_its_server(app, path):
    [route] = [r for r in app.routes if r.path == path]
    answer = asyncio.run(route.endpoint())
    text = answer.body.decode()
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    assert not re.findall(r"https?://|(?:src|href)=[\"']//", text)
    assert "width=device-width" in text and "color-scheme: light dark" in text


def test_every_address_that_a_page_asks_is_one_of_the_servers(app):
    routes = set(app.openapi()["paths"])
    asked = set(re.findall(r"(?:call|fetch)\('(v1/[\w/]+)'", script("playground.html")))
    assert len(asked) == 4 and {f"/{path}" for path in asked} <= routes


@pytest.mark.parametrize("page", PAGES.values())
def test_a_pages_script_can_be_read(page):
    node(script(page), "--check")


def test_a_visit_to_the_playground():
    browser = (PROJECT / "tests" / "fixtures" / "browser.js").read_text()
    told = json.loads(node("\n".join([browser, ANSWERS, "{" + script("playground.html"), VISIT + "}"])))
    seen, sent = told["seen"], told["sent"]
    assert seen["opened"]["texts"] == "an image of cracked\nan image of whole"
    assert seen["other domain"]["texts"] == "an image of pneumonia\nan image of normal"
    assert re.sub(r"\s+", " ", seen["answered"]["classes"]).strip() == "normal 75% pneumonia 25%"
    assert seen["answered"]["bars"] == ["75%", "25%"] and not seen["answered"]["hidden"]["answer"]
    assert not seen["asked for the token"]["hidden"]["token"] and "token" in seen["asked for the token"]["said"]
    assert seen["judged"]["said"] == "Thank you: it counts for version 7." and seen["judged"]["hidden"]["token"]
    assert ["v1/feedback", {"answer_id": "r1", "label": "normal"}] in sent
    assert "-0.100" in seen["similar"] and "an image of normal" in seen["similar"]
    assert seen["another image"]["hidden"]["answer"] and seen["another image"]["said"] == ""
    assert seen["refused"]["said"] == "Image 1: it is no image." and seen["refused"]["hidden"]["answer"]
    assert seen["afterwards"]["said"] == ""


def test_the_documentation_shows_every_route(app):
    description = json.dumps(app.openapi())
    fetched = (
        f"globalThis.location = {{ origin: '' }}; globalThis.fetch = async () => ({{ json: async () => ({description}) }})"
    )
    browser = (PROJECT / "tests" / "fixtures" / "browser.js").read_text()
    shown = node(
        "\n".join([browser, fetched, script("api.html"), "settle().then(() => console.log(elements.routes.textContent))"])
    )
    for path in json.loads(description)["paths"]:
        assert path in shown
    assert "iVBOR" not in shown  # bodies are values of fields, not text


def models_page(domain: dict[str, object], trained: dict[str, object] | None = None, waiting: str = "") -> dict[str, str]:
    """What Airflow's page Models shows of one domain, in Airflow's dark theme."""
    shown = {
        "name": "medical",
        "title": "Medical",
        "versions": {},
        "breaker": "closed",
        "incident": [],
        "probation": "",
        "report": "",
    }
    shown |= {"history": [], "alerts": [], "sparkline": [], "drift": None, "dataset": None} | domain
    page = {"domains": [shown], "problems": [], "playground": "http://server", "datasets_known": True}
    instance = {"dag_id": "clipft_finetune", "dag_run_id": "r", "task_id": "approve", "state": "awaiting_input"}
    answers = {
        "/clipft/models.json": page,
        "hitlDetails": {"hitl_details": [{"subject": waiting, "task_instance": instance}] if waiting else []},
        "clipft_finetune/dagRuns": {"dag_runs": [trained] if trained else []},
    }
    around = f"""
    const answers = {json.dumps(answers)}, root = {{ style: {{}} }}
    globalThis.location = {{ pathname: '/clipft/models' }}
    document.documentElement = root
    globalThis.window = globalThis
    globalThis.parent = {{ document: {{ documentElement: {{ classList: {{ contains: name => name === 'dark' }} }} }} }}
    globalThis.MutationObserver = class {{ observe() {{ }} }}
    globalThis.setInterval = () => {{ }}
    globalThis.fetch = async path => ({{ ok: true, json: async () => answers[Object.keys(answers).find(k => path.includes(k))] }})
    """
    browser = (PROJECT / "tests" / "fixtures" / "browser.js").read_text()
    look = "settle().then(() => console.log(JSON.stringify({ text: elements.domains.textContent, said: elements.said.textContent, scheme: root.style.colorScheme })))"
    told = json.loads(node("\n".join([browser, around, "{" + script("models.html", "plugins") + "}", look])))
    return told | {"text": re.sub(r"\s+", " ", told["text"])}


CHAMPION = {
    "number": "3",
    "created": 1.7e9,
    "dataset": "medical/v1",
    "metric": "accuracy",
    "scores": {"128": 0.9},
    "dag_run": "d/r",
    "link": "x",
}
CHAMPION |= {"start_scores": {"128": 0.5}}
DATASET = {"tag": "medical/v1", "created": 1.7e9}


@pytest.mark.parametrize(
    ("domain", "trained", "waiting", "expected"),
    [
        ({}, None, "", "No data set yet. Make one of your images"),
        ({"dataset": DATASET}, None, "", "No model yet. Fine-tune"),
        ({"dataset": DATASET}, "failed", "", "No model yet; the last training failed"),
        ({"versions": None, "breaker": "unknown"}, None, "", "MLflow does not answer"),
        ({"versions": {"champion": CHAMPION}, "dataset": DATASET}, None, "", "Live. Try it in the playground"),
        ({"versions": {"champion": CHAMPION}, "dataset": DATASET | {"tag": "medical/v2"}}, None, "", "medical/v2 is newer than"),
        ({"versions": {"champion": CHAMPION}}, None, "medical: readapt?", "medical: readapt? Decide"),
    ],
)  # fmt: skip
def test_the_page_models_says_what_to_do_next(domain, trained, waiting, expected):
    run = {"dag_run_id": "r", "state": trained, "conf": {"domain": "medical"}} if trained else None
    shown = models_page(domain, run, waiting)
    assert expected in shown["text"] and shown["said"] == "" and shown["scheme"] == "dark"
    if domain.get("versions"):
        assert (
            "128 px 0.900 (start model 0.500)" in shown["text"] and "2023" in shown["text"] and "Compare" not in shown["text"]
        )
