"""When refreshes run: one schedule a plan, and a sensor for new and updated connections."""
