"""Speed and memory, measured against the simulator and side by side with dlt: `make bench`."""
