"""Looking after an installation, embedded or a team's: is it well, what must be kept, what may go, what an upgrade changes."""
