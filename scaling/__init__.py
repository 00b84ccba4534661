"""The study and the trainer: config, plan, train step, engines, checkpoints, metrics, cost, command line."""
