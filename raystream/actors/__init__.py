"""The runtime on Ray: thin shells around the decisions in `core` and the logs in `storage`."""
