"""sitq: a small async-first task queue."""
