"""A server of the live release: FastAPI on uvicorn, with HotModel.

    MODELS=models/products uvicorn server:app --port 8000
    MODELS=models/products uvicorn server:app --port 8000 --workers 4

It starts to listen when a model is ready. From then on every request is answered, by one release as a
whole, and the answer names it. Each worker follows what is live by itself.
"""

from __future__ import annotations

import gc
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np
import spacy  # noqa: F401  # so early that it is frozen below
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from spancat_daemon import HotModel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WARM_UP = ["Globex sells doors in Paris."]  # better: a handful of what you are really asked


class Question(BaseModel):
    """What is asked."""

    text: str


class Found(BaseModel):
    """A span, by characters of the text."""

    start: int
    end: int
    label: str
    score: float


class Answer(BaseModel):
    """All spans of a text, and the release that found them."""

    release: str
    spans: list[Found]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Follow what is live for as long as the server runs; without a model in a minute it does not start."""
    gc.freeze()  # what is imported stays: to search it for garbage after each swap would halt all for 50 ms
    with HotModel(os.environ["MODELS"], warm_up=WARM_UP) as hot:
        await hot.ready(patience_s=60)
        app.state.hot = hot
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/spans")
def spans(question: Question) -> Answer:  # no "async": it runs in a thread, and the event loop stays free
    """Find the spans of a text."""
    hot: HotModel = app.state.hot
    with hot.use() as nlp:  # the same model until the end of the block, whatever becomes live meanwhile
        doc = nlp(question.text)
        group = doc.spans["sc"]  # no longer than the document lives
        scores = np.ravel(group.attrs.get("scores", []))  # a text without tokens has none
        return Answer(
            release=nlp.path.name,
            spans=[
                Found(start=span.start_char, end=span.end_char, label=span.label_, score=score)
                for span, score in zip(group, scores, strict=True)
            ],
        )


@app.get("/healthz")
async def healthz(release: str | None = None) -> dict[str, object]:
    """Say what serves; asked for a release (``/healthz?release=ID``), it is well only if that one does."""
    hot: HotModel = app.state.hot
    serving = await hot.ready()
    if release not in {None, serving.id}:
        raise HTTPException(503, f"{serving.id} serves, not {release}")
    return {"release": serving.id, "labels": serving.manifest.labels, "sha256": serving.manifest.model_sha256}
