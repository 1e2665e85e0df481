"""Learning under attack, through a real chain: see `tables.py`."""
