"""What both daemons are made of: settings, logs, health, signals. The furniture, not the house."""
