"""clipft: fine-tune, prove, ship and watch CLIP models. This package knows nothing of Airflow."""

__version__ = "0.1.0"
