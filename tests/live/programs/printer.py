"""Prints numbers in a row, five a second, for as long as it lives: whoever reads them sees a gap, or a second copy."""

import time

number = 0
while True:
    print(number, flush=True)
    number += 1
    time.sleep(0.2)
