"""What helps to judge data, features and the machine."""
