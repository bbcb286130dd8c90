"""What all tests share: hypothesis without deadlines, for the machines that run them are shared and slow at times."""

from hypothesis import settings

settings.register_profile("project", deadline=None, print_blob=True)
settings.load_profile("project")
