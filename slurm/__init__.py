"""Slurm: the launcher, the job that saves and requeues, status, a real cluster for one machine."""
