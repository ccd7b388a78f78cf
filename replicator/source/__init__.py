"""Dirty state and user data in, facts out."""
