"""For all tests: an example of a property may take as long as the machine needs for it; what has to
be fast is measured by tests of its own.
"""

from hypothesis import settings

settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
