"""Data of users: the door that checks each array once, weights, orders and batches of rows."""
