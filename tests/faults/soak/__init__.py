"""The whole system for as long as one likes: trainings, readers, users and faults at once, judged at the end.

``python -m tests.faults.soak --minutes 10``; see ``__main__``.
"""
