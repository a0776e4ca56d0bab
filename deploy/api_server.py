"""Airflow's API server, whose event loop waits for no lock of the database.

Airflow writes down who did what inside its event loop. Where SQLite is just being written by another request, that waits for a commit
which the same loop would have to begin: everything stands still until SQLite gives up, and the person is answered 500. Here
that entry is committed in a thread.
"""

import sys
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request


class _Uncommitted:
    """A session to add to, which somebody else commits."""

    def __init__(self, session: Any) -> None:  # SQLAlchemy's
        self.add = session.add

    def commit(self) -> None:
        """Not here."""


def commit_in_threads() -> None:
    """Let entries of Airflow's log of actions be committed in threads. To be called before Airflow's routes are imported."""
    from airflow.api_fastapi.common.db.common import SessionDep
    from airflow.api_fastapi.core_api.security import GetUserDep
    from airflow.api_fastapi.logging import decorators

    usual = decorators.action_logging

    def action_logging(event: str | None = None) -> Any:  # a dependency of FastAPI
        log_action = usual(event)

        async def log_in_thread(request: Request, session: SessionDep, user: GetUserDep) -> None:
            await log_action(request, _Uncommitted(session), user)
            await run_in_threadpool(session.commit)

        return log_in_thread

    decorators.action_logging = action_logging


def main() -> None:
    from airflow.__main__ import main as airflow

    commit_in_threads()
    sys.argv = ["airflow", "api-server", *sys.argv[1:]]
    airflow()


if __name__ == "__main__":
    main()
