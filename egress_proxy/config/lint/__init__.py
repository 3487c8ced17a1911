"""Warnings about rules that load and probably do not say what their writer meant."""
