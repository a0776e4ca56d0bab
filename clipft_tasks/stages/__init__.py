"""Stages: the verbs. Each is one file with `run(spec, …) -> dict` of ids, URIs and numbers.

Airflow, the CLI and dvc.yaml call the same functions. A stage that is run again finds its own work and returns it.
"""
