"""The door: where a team's workers are enrolled, recognized and turned away."""
