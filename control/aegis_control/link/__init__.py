"""The agents' end of control: their WebSockets, what each frame does, and who is there."""
