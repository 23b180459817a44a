"""`python -m raftdb` is `raftdb`."""

from raftdb.cli import main

if __name__ == "__main__":
    main()
