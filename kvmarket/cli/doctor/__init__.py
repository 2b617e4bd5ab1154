"""``kvmarket doctor``: checks what this machine can share; each finding comes with advice."""
