"""Several Ray nodes on one machine, what can be done to them, and what clients notice of it."""
