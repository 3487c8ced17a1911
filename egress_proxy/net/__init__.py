"""Sockets: accepting, resolving, dialling and relaying."""
