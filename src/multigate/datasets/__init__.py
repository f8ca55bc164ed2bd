"""Data sets: public ones as they were published, and a simulated one whose truth is known."""
