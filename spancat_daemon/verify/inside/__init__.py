"""What runs in the loader's process, in the interpreter that will serve: standard library and spaCy ≥ 3.2.2 only."""
