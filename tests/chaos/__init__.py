"""The chaos harness: engines that publish, match, fetch, retire and overwrite at random, while a driver kills them.

    python -m tests.chaos --seed 1 --seconds 60 --engines 5 --kills 60

The engines (engine.py) see any wrong byte, because every block's bytes derive from its tokens (world.py); the driver
(driver.py) kills, stops and starts them, kills the service, and watches for hangs, exceptions and leaks.
"""
