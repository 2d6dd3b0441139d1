"""What needs a person: found in the state of the installation, told once, and told again when it is over."""
