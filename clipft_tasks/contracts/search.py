"""A search index: what it holds, and what it finds."""

from pydantic import Field

from .base import VersionedRecord
from .serving import Answer


class IndexCard(VersionedRecord):
    """What an index was made of. Two versions have two embedding spaces, so an index belongs to one."""

    WHAT = "the card of an index"

    domain: str
    version: str = Field(description="of the model that made the embeddings")
    source: str = Field(description="a dataset version (`industrial/v1`), or what a reader opens")
    similarity: str
    dimensions: int
    rows: int
    refused: int = Field(0, description="images of the source that could not be read")
    made: float = Field(description="seconds since 1970")


class SearchHit(Answer):
    id: str = Field(description="the source's own name for the image: by it a row is forgotten")
    label: str
    caption: str
    score: float = Field(description="similarity with what was asked for; more is more similar")


class SearchResults(Answer):
    hits: list[SearchHit]
    domain: str
    version: str
    source: str
    rows: int = Field(description="that the index holds")
