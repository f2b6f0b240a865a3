"""Protocols that show how to write one. `docs/server-authors.md` leads to them."""
