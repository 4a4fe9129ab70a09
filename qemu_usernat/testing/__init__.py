"""The testing room: a real guest, its console, and servers for it to talk to.

Shipped, because other projects need a machine on a network of their own too. Nothing that
runs in production imports it.
"""
