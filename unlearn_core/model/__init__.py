"""The language model: loading, adapters, batches, losses, prompts, answers, memory."""
