"""Checks that every module of the application compiles, and writes none of it."""
import pathlib
import sys

for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.py")):
    compile(path.read_text(), str(path), "exec")
    print("checked", path)
