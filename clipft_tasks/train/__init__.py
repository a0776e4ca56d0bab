"""Training: hardware becomes a plan, a plan and a spec become a fine-tuned model."""
