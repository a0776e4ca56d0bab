"""Plain FastAPI: a route a tower, one request a forward pass, in FastAPI's threads."""

from fastapi import FastAPI
from pydantic import BaseModel

from bench.serving.apps.tower import Tower

app = FastAPI()
tower = Tower()


class Item(BaseModel):
    image: str = ""
    text: str = ""


@app.post("/predict")
def predict(item: Item) -> list[float]:
    return (tower.images([tower.decode(item.image)]) if item.image else tower.texts([item.text]))[0]
