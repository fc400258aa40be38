"""The faces of the node: command, daemon, coordinator, HTTP API, demo, chaos."""
