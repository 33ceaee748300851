"""Fine-tuning: strategies, losses, the trainer, and a report of what was learnt and forgotten."""
