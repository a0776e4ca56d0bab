"""What has to be there before the team's services start: tables, buckets, the password file, the accelerator's pool.

Runs to its end at every start, and changes nothing where nothing has to change.
"""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

from clipft_tasks.core.errors import ClipftError, TransientError
from clipft_tasks.core.files import atomic_write
from clipft_tasks.core.settings import settings
from clipft_tasks.ops.upgrade import upgrade

BUCKETS = ("mlflow", "data")
BACKUPS = "/backups"


def passwords() -> None:
    """Airflow's file of passwords, which it wants to write to itself."""
    path = Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    user = os.environ["CLIPFT_AIRFLOW_USER"]
    atomic_write(path, json.dumps({user: os.environ["CLIPFT_AIRFLOW_PASSWORD"]}), mode=0o660)


def buckets() -> None:
    """The store's buckets, at AWS_ENDPOINT_URL."""
    store = boto3.client("s3")
    for name in BUCKETS:
        try:
            store.create_bucket(Bucket=name)
            print(f"Made the bucket {name}.")
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise


def tables() -> None:
    """Airflow's, MLflow's and the studies' tables, created or upgraded; tables that are there are backed up before."""
    kept = Path(BACKUPS)
    try:
        for note in upgrade(kept if os.access(kept, os.W_OK) else None).notes:
            print(note)
    except ClipftError as error:
        sys.exit(f"Error: {error.line}")
    except TransientError as error:
        sys.exit(f"Error: {error}")


def pool() -> None:
    """The pool of tasks that need an accelerator. Each worker runs one at a time; a person may change the number afterwards."""
    from airflow.models.pool import Pool
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        if session.scalar(select(Pool).where(Pool.pool == "accelerator")) is None:
            slots = settings().accelerator_slots
            session.add(
                Pool(pool="accelerator", slots=slots, description="tasks that need an accelerator", include_deferred=False)
            )


def main() -> None:
    passwords()
    with ThreadPoolExecutor() as beside:
        made = beside.submit(buckets)
        tables()
        made.result()
    pool()
    print("Everything is prepared.")


if __name__ == "__main__":
    main()
