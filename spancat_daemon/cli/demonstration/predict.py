"""What a server does with a release: load it with spaCy, predict.

Runs in a process of its own: ``python predict.py RELEASE TEXT``; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import spacy


def main() -> None:
    """Loads, predicts, prints."""
    release, text = sys.argv[1:]
    began = time.perf_counter()
    # The link is followed once: so all files are of one release, whatever goes live meanwhile
    nlp = spacy.load(Path(release).resolve())
    load_s = time.perf_counter() - began
    doc = nlp(text)
    spans = doc.spans["sc"]
    found = [
        {"text": span.text, "label": span.label_, "score": float(score)}
        for span, score in zip(spans, spans.attrs["scores"], strict=True)
    ]
    print(json.dumps({"load_s": load_s, "spans": found}))  # noqa: T201  # its standard output is its answer


if __name__ == "__main__":
    main()
