"""The NAT engine: the flow table and the flows in it, sans-IO."""
