"""One module a tab: how it looks, and the pure function that turns its form into one request."""
