"""What starts runs or notifies without a schedule: changed connections, alerts."""
