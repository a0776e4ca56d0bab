"""People are told: by mail, a chat, or any webhook, whichever addresses `CLIPFT_NOTIFY` names. What goes wrong here never fails a run.

smtp://user:password@mail.example.org:587/?from=clipft@example.org&to=ward@example.org   mail; smtps:// for TLS from the start
slack+https://hooks.slack.com/services/…      Slack, or a chat that takes the same ({"text": …})
https://example.org/hook                      a `Notice` as JSON
"""

import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from pydantic import SecretStr

from ..contracts.notice import Notice
from ..core.errors import ClipftError
from ..core.settings import settings

log = logging.getLogger("clipft")
SECONDS = 4.0  # that one address may take
MOST = 1500  # characters of a text
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")  # of an address in a text
LONG = 6  # characters from which a secret is taken for one in a text


def tell(notice: Notice) -> list[str]:
    """Tell every address at the same time; returns what went wrong, a line for each, and logs it. Raises nothing."""
    try:
        addresses = _addresses()
        clean = notice.model_copy(
            update={
                "title": without_secrets(notice.title),
                "text": without_secrets(notice.text)[:MOST],
                "link": without_secrets(notice.link),
            }
        )
        problems = _send_all([(address, clean) for address in addresses])
    except Exception as error:  # whatever it is, the run matters more
        problems = [f"nobody was told: {type(error).__name__}"]
    for problem in problems:
        log.warning("Notifying: %s.", problem)
    return problems


def _send_all(work: Sequence[tuple[str, Notice]]) -> list[str]:
    if not work:
        return []
    pool = ThreadPoolExecutor(len(work), thread_name_prefix="notify")
    futures = {pool.submit(_send, address, notice): urlsplit(address) for address, notice in work}
    wait(futures, timeout=2 * SECONDS)
    pool.shutdown(wait=False, cancel_futures=True)
    problems = []
    for future, address in futures.items():
        where = f"{address.scheme}://{address.hostname}"  # a hook's path is its secret
        if not future.done():
            problems.append(f"{where} does not answer")
        elif error := future.exception():
            why = error.why if isinstance(error, ClipftError) else type(error).__name__
            problems.append(f"{where}: {why}")
    return problems


def _send(address: str, notice: Notice) -> None:
    url = urlsplit(address)
    SENDERS[url.scheme](url, notice)


def _mail(url: SplitResult, notice: Notice) -> None:
    import smtplib
    import ssl
    from email.message import EmailMessage

    given = parse_qs(url.query)
    message = EmailMessage()
    message["Subject"] = f"clipft: {notice.title}".replace("\n", " ")
    message["From"] = given.get("from", [f"clipft@{url.hostname}"])[0]
    message["To"] = ", ".join(given["to"])
    message.set_content("\n\n".join(part for part in (notice.text, notice.link) if part) + "\n")
    host, context = url.hostname or "", ssl.create_default_context()
    if url.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(host, url.port or 465, timeout=SECONDS, context=context)
    else:
        server = smtplib.SMTP(host, url.port or 25, timeout=SECONDS)
    with server:
        server.ehlo()
        if url.scheme == "smtp" and server.has_extn("starttls"):
            server.starttls(context=context)
        if url.username:
            server.login(unquote(url.username), unquote(url.password or ""))
        server.send_message(message)


def _chat(url: SplitResult, notice: Notice) -> None:
    lines = [f"*{notice.title}*", notice.text, notice.link]
    _post(url.geturl().removeprefix("slack+"), {"text": "\n".join(line for line in lines if line)})


def _webhook(url: SplitResult, notice: Notice) -> None:
    _post(url.geturl(), notice.to_json())


def _post(url: str, body: object) -> None:
    import httpx

    answer = httpx.post(url, json=body, timeout=SECONDS)
    if answer.is_error:
        raise ClipftError("the receiver", f"it answered {answer.status_code}", code="notify.refused")


SENDERS: dict[str, Callable[[SplitResult, Notice], None]] = {
    "smtp": _mail, "smtps": _mail, "http": _webhook, "https": _webhook, "slack+http": _chat, "slack+https": _chat,
}  # fmt: skip


def _addresses() -> list[str]:
    """The addresses of the setting. One of no known kind is said, and left out."""
    given = settings().notify
    found = (given.get_secret_value() if given else "").split()
    for number, address in enumerate(found, 1):
        scheme = urlsplit(address).scheme
        if scheme not in SENDERS or (SENDERS[scheme] is _mail and "to" not in parse_qs(urlsplit(address).query)):
            log.warning("CLIPFT_NOTIFY: address %d is none of smtp://…?to=…, slack+https://… and https://….", number)
            found[number - 1] = ""
    return [address for address in found if address]


def without_secrets(text: str) -> str:
    """A text without this installation's secrets, and without user and password in addresses."""
    current = settings()
    for name in type(current).model_fields:
        value = getattr(current, name)
        if isinstance(value, SecretStr):
            for secret in value.get_secret_value().split():
                if len(secret) >= LONG:
                    text = text.replace(secret, "***")
    return CREDENTIALS.sub("***@", text)
