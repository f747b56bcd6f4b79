"""For those who train: a logger for ``spacy train`` that says "written", and saves between evaluations.

It is one module that needs nothing but spaCy, so that it also runs where the rest of this package doesn't.
"""
