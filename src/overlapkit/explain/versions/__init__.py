"""The same configuration judged for several versions, and what differs among them."""
