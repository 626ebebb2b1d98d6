"""What more places for runs, and more processes for a run, are worth."""
