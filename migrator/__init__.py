"""Two hosts: plans a migration, drives both agents, and commits."""
