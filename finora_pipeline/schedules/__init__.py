"""When jobs run: a schedule for each plan, and the nightly upkeep. What runs belongs into `jobs`."""
