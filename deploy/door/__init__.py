<<<<<<< HEAD
"""Who may pass the gateway."""
=======
"""The door: where a team's workers are enrolled, recognised and turned away."""
>>>>>>> 56c34a1 (The door, and the worker that joins through it)
