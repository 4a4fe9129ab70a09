"""TCP towards the guest, as explicit sans-IO machines (RFC 9293)."""
