"""Adaptive assembly."""
