"""The worker gateway: enrolls a team's workers, and decides for each request at the team's address who may pass (forward-auth)."""
