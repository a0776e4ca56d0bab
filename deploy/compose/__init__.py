"""What the team's deployment (docker-compose.yaml) runs besides the programs themselves."""
