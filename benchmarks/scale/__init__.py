"""What more places for runs, processes of a run, people at work, and wider layers cost and give."""
