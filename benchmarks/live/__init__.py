"""How long a live model takes to change, and to be measured."""
