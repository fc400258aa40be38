"""Why two devices do not meet, and what to type next."""
