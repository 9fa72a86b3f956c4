"""The formulas of the paper: losses, metrics, and the weighted sum that training minimises."""
