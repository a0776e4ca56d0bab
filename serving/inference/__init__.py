"""The FastAPI server: image-text similarity in real time."""
