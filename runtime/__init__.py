"""This device's part of the work: weights, blocks, caches, the worker thread, stages, sessions."""
