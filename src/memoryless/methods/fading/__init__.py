"""Does a memory fade, and how fast?"""
