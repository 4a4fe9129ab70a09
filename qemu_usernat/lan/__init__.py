"""The guests' Ethernet segment."""
