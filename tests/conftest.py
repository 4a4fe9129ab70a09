"""What all tests need: the signals of a terminal, and how hard Hypothesis tries.

`make test` keeps to minutes and asks the same questions each time, so that what lands does not
hang on luck; a plain `pytest` asks new ones each time, and `make test-deep` many more.
"""

import signal

from hypothesis import settings

# Who starts the tests in the background may have SIGINT ignored, and so would the children have.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine under load is no failure of the code: limits on time are tests of their own.
settings.register_profile("default", deadline=None)
settings.register_profile("gate", deadline=None, derandomize=True)
settings.register_profile("deep", deadline=None, max_examples=5000)
settings.load_profile("default")
