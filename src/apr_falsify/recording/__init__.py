"""What a program of a user's computes, written down while it runs, in this order.

``token_ids``: the ids that were run. ``frameworks``: an array of any framework as its bytes. ``recorder``: a
recording, whole or absent.
"""
