"""Pictures of runs: what is drawn is decided in pure files, and drawn by matplotlib in `drawing.py` alone."""
