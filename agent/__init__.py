"""One host's side of a migration: the agent. As a target it needs the standard library only."""
