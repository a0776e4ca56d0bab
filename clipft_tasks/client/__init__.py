"""A client of the inference server for applications, `Client` and `AsyncClient`: embeddings, classes, similarity, feedback, bulk.

    from clipft_tasks.client import Client

    with Client("http://127.0.0.1:8800", domain="industrial") as client:
        [cell] = client.classify([Path("cell.png")])
        client.feedback(cell, "functional solar cell")

It imports neither torch nor numpy. A text is a `str`; an image is a path or the bytes of a file. Lists of any length are sent in parts. What is
away or busy (no connection, 408, 429, 502, 503, 504) is asked again, after as long as the server's `Retry-After` says.
"""

from .clients import AsyncClient, Client
from .exchange import BulkAnswer, Classified, Embedded

__all__ = ["AsyncClient", "BulkAnswer", "Classified", "Client", "Embedded"]
