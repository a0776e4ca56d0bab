"""People are told: a mail server, a chat and a webhook of this machine receive what Airflow's callbacks and the stages send."""

import asyncio
import json
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from clipft_tasks.contracts.notice import Notice
from clipft_tasks.core.settings import settings
from clipft_tasks.ops import notify
from clipft_tasks.ops.reminders import UNANSWERED, _due

NOTICE = Notice(
    event="approval_wanted", title="Promote clipft-medical version 3?", text="A table.", domain="medical", link="http://a/b"
)


class Hook(ThreadingHTTPServer):
    daemon_threads = True
    status, seconds = 200, 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HookHandler)
        self.got: list[tuple[str, Any]] = []


class HookHandler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        time.sleep(self.server.seconds)
        self.server.got.append((self.path, json.loads(body)))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Mailbox(socketserver.ThreadingTCPServer):
    """As much of SMTP as a mail needs."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), MailHandler)
        self.got: list[str] = []


class MailHandler(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        self.wfile.write(b"220 mail\r\n")
        while line := self.rfile.readline():
            if line.upper().startswith(b"DATA"):
                self.wfile.write(b"354 go on\r\n")
                body = b""
                while (part := self.rfile.readline()) != b".\r\n":
                    body += part
                self.server.got.append(body.decode())
            self.wfile.write(b"221 bye\r\n" if line.upper().startswith(b"QUIT") else b"250 ok\r\n")


@pytest.fixture
def receivers(home: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hook, Mailbox]]:
    hook, mailbox = Hook(), Mailbox()
    for server in (hook, mailbox):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    web, mail = f"http://127.0.0.1:{hook.server_port}", f"smtp://127.0.0.1:{mailbox.server_address[1]}"
    addresses = (
        f"{web}/hook?key=hook-secret slack+{web}/services/T0/B0/chat-secret {mail}/?from=a@b.org&to=ward@b.org&to=c@b.org"
    )
    monkeypatch.setenv("CLIPFT_NOTIFY", addresses)
    monkeypatch.setenv("CLIPFT_SERVER_TOKEN", "server-secret")
    settings.cache_clear()
    yield hook, mailbox
    for server in (hook, mailbox):
        server.shutdown()
        server.server_close()


def test_mail_chat_and_webhook_are_told(receivers):
    hook, mailbox = receivers
    assert notify.tell(NOTICE) == []
    got = {path.split("?")[0]: body for path, body in hook.got}
    assert Notice.from_json(got["/hook"]) == NOTICE
    assert got["/services/T0/B0/chat-secret"] == {"text": "*Promote clipft-medical version 3?*\nA table.\nhttp://a/b"}
    [mail] = mailbox.got
    assert (
        "Subject: clipft: Promote clipft-medical version 3?" in mail
        and "To: ward@b.org, c@b.org" in mail
        and "http://a/b" in mail
    )


def test_no_secret_is_in_a_message_nor_in_the_log(receivers, caplog):
    hook, mailbox = receivers
    hook.status = 500
    text = "refused with server-secret by http://user:password@host/x, asked at http://h/services/T0/B0/chat-secret"
    problems = notify.tell(NOTICE.model_copy(update={"text": text}))
    assert len(problems) == 2 and all("it answered 500" in problem for problem in problems)
    for said in (json.dumps(hook.got[0][1]), json.dumps(hook.got[1][1]), mailbox.got[0], caplog.text):
        assert not [s for s in ("server-secret", "user:password") if s in said]
    assert "secret" not in caplog.text


def test_a_receiver_that_is_away_slow_or_nonsense_fails_nothing_and_holds_nobody_up(receivers, monkeypatch):
    hook, _ = receivers
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    hook.seconds = 30.0
    monkeypatch.setattr(notify, "SECONDS", 0.5)
    monkeypatch.setenv("CLIPFT_NOTIFY", f"{nobody} nonsense smtp://127.0.0.1/ http://127.0.0.1:{hook.server_port}/")
    settings.cache_clear()
    began = time.monotonic()
    assert len(notify.tell(NOTICE)) == 2
    assert time.monotonic() - began < 10
    monkeypatch.delenv("CLIPFT_NOTIFY")
    settings.cache_clear()
    assert notify.tell(NOTICE) == []


# Airflow's callbacks -------------------------------------------------------------------------------------------------


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Any:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    monkeypatch.syspath_prepend("plugins")
    import clipft_notices

    return clipft_notices


def context(task: Any, **more: Any) -> dict[str, Any]:
    ti = SimpleNamespace(dag_id="clipft_finetune", task_id="gate", log_url="http://airflow/log")
    return {"ti": ti, "task": task, "params": {"domain": "medical"}, **more}


def events(hook: Hook) -> list[Notice]:
    return [Notice.from_json(body) for path, body in hook.got if path.startswith("/hook")]


def test_airflows_callbacks_tell_of_failures_approvals_and_late_runs(receivers, plugin):
    hook, _ = receivers
    error = RuntimeError("version 3: it did not pass")
    plugin.task_failed(context(SimpleNamespace(task_type="_PythonDecoratedOperator"), exception=error))
    plugin.task_failed(context(SimpleNamespace(task_type="SubRun"), exception=error))  # its own run tells
    plugin.ApprovalWanted()(context(SimpleNamespace(subject="Promote?", body="A table.")))
    run = {"dag_id": "clipft_finetune", "dag_run_id": "r", "conf": {"domain": "medical"}, "start_date": "2026-01-01"}
    asyncio.run(plugin.run_is_late(context={"dag_run": run}))
    told = events(hook)
    assert [notice.event for notice in told] == ["run_failed", "approval_wanted", "run_late"]
    assert told[0].title == "clipft_finetune failed at gate (medical)" and "did not pass" in told[0].text and told[0].link
    assert {notice.domain for notice in told} == {"medical"} and "much longer than usual" in told[2].title


def test_an_approval_is_told_of_once_more_before_it_lapses():
    from datetime import UTC, datetime, timedelta

    asked = datetime(2026, 1, 1, tzinfo=UTC)
    waiting = {
        "body": "A table.\n\n" + UNANSWERED.format(4.0) + " Reject.", "subject": "Promote?",
        "created_at": asked.isoformat(), "task_instance": {"dag_id": "d", "dag_run_id": "r", "task_id": "approve"},
    }  # fmt: skip
    stretches = [(asked + timedelta(minutes=15 * n), asked + timedelta(minutes=15 * (n + 1))) for n in range(20)]
    told = [(n, notice) for n, (since, until) in enumerate(stretches) for notice in _due([waiting], since, until, "http://a")]
    [(when, notice)] = told
    assert when == 11 and notice.event == "approval_lapses" and "04:00 UTC it counts as Reject" in notice.text  # an hour before
    assert notice.link == "http://a/dags/d/runs/r/tasks/approve/required_actions"
    assert not list(_due([waiting | {"body": None}], *stretches[11], "http://a"))
