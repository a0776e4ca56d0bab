"""Who may pass the gateway."""
