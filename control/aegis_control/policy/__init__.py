"""Who may do what: the policy file, and the one decision that every grant comes from."""
