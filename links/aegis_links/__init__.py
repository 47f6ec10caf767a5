"""The peer link over aiortc that agent and client share: connection, channels, files, terminals."""
