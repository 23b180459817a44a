"""End-to-end tests: real processes, real clients, a proxy between the nodes. docs/end-to-end.md is the list."""
