"""Encoders and encoder-decoders: sentence vectors, text to text, speech to text."""
