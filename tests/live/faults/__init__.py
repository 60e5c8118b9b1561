"""The fault grid: every fault, at every victim, at every instant of a migration, and who still lives afterwards."""
