"""Every datapath held against the same list: recognised, predicted, seen on every hop, and tcpdump says the same.

What a live run finds is a row of the table in docs/datapaths/README.md. The test compares the two; ``python -m tests.datapaths``
writes the rows anew.
"""
