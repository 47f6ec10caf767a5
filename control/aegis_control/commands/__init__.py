"""The commands that ask a running control, and what they print."""
