"""One training at a time in a process, for the random numbers that its weights depend on are those of all threads."""

import threading

turn = threading.RLock()
"""Held while a model is trained, so that trainings in threads take turns; processes train at once.

A training may train others from its own thread (from ``watch``, say); one that waits for a thread which trains would
wait for ever.
"""
