"""The hook's counters in vLLM's log and on vLLM's ``/metrics`` page."""
