"""What runs in the user's process: producers, consumers, readers. Knows ports, not Ray."""
