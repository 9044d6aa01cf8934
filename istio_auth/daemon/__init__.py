"""What both daemons have in common beside their work: settings, logs, health, signals."""
