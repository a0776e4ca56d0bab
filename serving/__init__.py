"""The server: CLIP models of every domain behind one FastAPI application."""
