"""Modules that run what was loaded."""
