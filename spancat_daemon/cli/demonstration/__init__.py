"""What `demo` is made of: a real training, the real daemon, and the model that comes out in the end.

`corpus.py` and `predict.py` run in processes of their own, with spaCy; nothing here imports them.
"""
