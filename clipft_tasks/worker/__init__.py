"""A machine that takes a team's training tasks: joining, checking, running, starting at login. Imports neither airflow nor torch
before it must; Airflow is started as a program."""
