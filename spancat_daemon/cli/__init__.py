"""The command line: one file per command; `app` puts them together.

Commands import what they need when they run, so that ``--help`` and the reading ones answer at once.
"""
