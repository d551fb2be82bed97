"""This machine's settings of pip as one file, for the build of an image: `pip_settings.py FILE`.

Prints the local files and directories that the settings name, one a line: the build must be lent them.
"""

import ast
import subprocess
import sys
from pathlib import Path


def main(file: Path) -> None:
    """Write the settings to `file`, print the paths."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True)
    settings = {}
    for line in listed.stdout.splitlines():
        # global.find-links='/wheels', :env:.find-links='/wheels'; the environment comes first and counts most.
        key, _, value = line.partition("=")
        settings.setdefault(key.rpartition(".")[2], str(ast.literal_eval(value)))
    settings.pop("config-file", None)
    lines = ["[global]", *(f"{name} = {' '.join(value.split())}" for name, value in settings.items())]
    file.write_text("\n".join(lines) + "\n")
    words = {word for value in settings.values() for word in value.split()}
    # A local index links to files that lie beside it.
    indexes = {Path(word.removeprefix("file://")).parent for word in words if word.startswith("file:///")}
    paths = indexes | {Path(word) for word in words if word.startswith("/")}
    print(*sorted(path for path in paths if path.exists() and path != Path("/")), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
