"""How much does a net use a variable? What people compute today, each by its own package, and ours, on the same net and images."""
