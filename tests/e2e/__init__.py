"""Whole validators as processes of their own, on 127.0.0.1, treated as the world treats them."""
