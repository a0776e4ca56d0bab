"""The door: where a team's workers are enrolled, recognised and turned away."""
