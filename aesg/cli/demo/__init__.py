"""The demo: real text becomes a memory that is asked, consolidated, closed and reopened.

`stdlib` and `folder` gather a `corpus`; `embedding` turns its passages into vectors; `tour` does everything with the
memory, through its public interface alone; `show` prints.
"""
