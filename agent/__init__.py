"""One host's side of a migration: the agent. It never imports migrator; as a target it needs the standard library only."""
