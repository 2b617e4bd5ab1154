"""Ask a running lender for another size.

`ask` is for any process of the user; a lender listens by `listening.Requests`.
"""

from kvmarket.lend.resize.asking import Resized as Resized
from kvmarket.lend.resize.asking import ask as ask
