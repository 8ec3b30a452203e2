"""Fine-tuning: losses, optimizer, LoRA and one training step."""
