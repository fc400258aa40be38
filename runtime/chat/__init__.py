"""Conversations to prompts: the model's own template, rendered out of harm's way."""
