"""What everything else stands on: errors, decisions, console, plugin registry, files, settings, versions. Imports nothing of ours."""
