"""The bodies of control's HTTP API, a file for each noun."""
