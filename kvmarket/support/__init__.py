"""What everything may use: arrays of flags, sets, failures that pass, threads that outlive an exception."""
