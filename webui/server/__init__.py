"""Serving the page: the port, the accounts, the public link, starting and stopping. It wires nothing."""
