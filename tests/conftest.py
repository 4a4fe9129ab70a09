"""How hard Hypothesis tries: `make test` keeps to minutes, `make test-deep` takes its time."""

from hypothesis import settings

# A machine under load is no failure of the code: limits on time are tests of their own.
settings.register_profile("default", deadline=None)
settings.register_profile("deep", deadline=None, max_examples=5000)
settings.load_profile("default")
