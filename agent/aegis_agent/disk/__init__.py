"""Folders that hostile code has written in, and the room that things take on the disk."""
