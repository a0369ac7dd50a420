"""Entropy coding: probability tables, the executable specification and the fast coder."""
