"""Model files as they are laid out by others: read, checked, never trusted."""
