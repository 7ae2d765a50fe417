"""The commands: flags, runs that can be stopped, and what they leave behind."""
