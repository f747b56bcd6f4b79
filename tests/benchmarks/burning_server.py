"""The server of docs/examples, which can also be told to load a model that it never uses."""

from __future__ import annotations

import gc

import spacy

from docs.examples.server import WARM_UP, app


@app.post("/burn")
def burn() -> None:
    """Do what a swap computes, and nothing of what it changes."""
    with app.state.hot.use() as nlp:
        path = nlp.path
    loaded = spacy.load(path)
    for _ in loaded.pipe(WARM_UP):
        pass
    del loaded
    gc.collect()
