"""What runs in the loader's process, in the interpreter that will serve.

It needs the standard library and spaCy 3.2.2 or later on Python 3.8 or later, nothing of spancat-daemon.

`__main__` speaks with the daemon, `confinement` takes from the process what loading doesn't need, `answers`
answers one request; `loading`, `probing`, `scoring`, `timing` and `deriving` are what can be asked.
"""
