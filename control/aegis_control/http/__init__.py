"""Control's HTTP API: one table of routes, and what is true of every request."""
