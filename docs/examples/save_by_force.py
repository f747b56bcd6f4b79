"""Train a little in memory, and save it by force: from a notebook into production, as the daemon would do it.

Each ``# %%`` is a cell. Whether or not a daemon runs for the folder makes no difference to any of them.
"""

# %% A tiny span categorizer, trained in memory
from pathlib import Path

import spacy
from spacy.language import Language
from spacy.tokens import Span
from spacy.training import Example

import spancat_daemon

FOLDER = Path("models/products")  # a rule's `deploy` folder; it is made if it is missing
SENTENCES = [
    ("Globex sells doors in Paris.", [(0, 1, "ORG"), (2, 3, "GOODS"), (4, 5, "PLACE")]),
    ("Acme opened an office in Berlin.", [(0, 1, "ORG"), (5, 6, "PLACE")]),
    ("They ship windows to Paris and Berlin.", [(2, 3, "GOODS"), (4, 5, "PLACE"), (6, 7, "PLACE")]),
    ("Nothing of note happened today.", []),
]

nlp = spacy.blank("en")
nlp.add_pipe("spancat")
examples = []
for text, spans in SENTENCES:
    annotated = nlp.make_doc(text)
    annotated.spans["sc"] = [Span(annotated, *span) for span in spans]
    examples.append(Example(nlp.make_doc(text), annotated))
optimizer = nlp.initialize(lambda: examples)
for _ in range(60):
    nlp.update(examples, sgd=optimizer)


def found(pipeline: Language, text: str) -> list[tuple[str, str]]:
    """Say what a pipeline finds in a text."""
    doc = pipeline(text)
    return [(span.text, span.label_) for span in doc.spans["sc"]]


TEXT = "Globex sells doors in Paris."
print(found(nlp, TEXT))

# %% Save it by force: it becomes a release, and is live when this returns
release = spancat_daemon.save(nlp, FOLDER)
print(release.id, release.manifest.labels)

# %% What serves loads it, and predicts the same
served = spancat_daemon.load(FOLDER)
assert found(served, TEXT) == found(nlp, TEXT)

# %% Force makes a new release even if nothing has changed; what was live stays to go back to
again = spancat_daemon.save(nlp, FOLDER)
assert again.sequence > release.sequence
assert again.manifest.content_sha256 == release.manifest.content_sha256
assert found(spancat_daemon.load(FOLDER, release="@1"), TEXT) == found(nlp, TEXT)
print([(one.sequence, one.live) for one in spancat_daemon.releases(FOLDER)])
