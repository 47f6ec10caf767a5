"""The groups of commands below `aegis-agent`, and what commands share."""
