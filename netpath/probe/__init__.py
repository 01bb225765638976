"""Makes probe packets and sends them from inside a pod's network namespace, through that namespace's own stack."""
