"""`make reset`: deletes everything that a home holds, its database wherever it stands. Asks first."""

import fcntl
import shutil
import sys
from pathlib import Path

from controlplane import environment
from controlplane.local.home import Home
from controlplane.local.postgres import POINTER
from controlplane.local.runner import ROOT

# Only a folder with these in it is a home; a mistyped SIGNALBOX_HOME must not cost anybody's files.
SIGNS = ("run", "secret-key")


def folders_of(home: Home) -> list[Path]:
    """What would be deleted: the home, and the cluster where it stands elsewhere."""
    pointer = home.root / POINTER
    elsewhere = [Path(pointer.read_text().strip())] if pointer.exists() else []
    return [folder for folder in (home.root, *elsewhere) if folder.exists()]


def reset(home: Home, *, confirmed: bool) -> str:
    """Deletes the home and returns "", or returns the sentence that says why it was left."""
    if not home.root.exists():
        return f"{home.root} does not exist: there is nothing to delete."
    if not all((home.root / sign).exists() for sign in SIGNS):
        return f"{home.root} is no home of Signalbox and is left alone."
    with home.lock_file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return f"Signalbox runs on {home.root}: stop it first."
        if not confirmed:
            return "Nothing was deleted."
        for folder in folders_of(home):
            shutil.rmtree(folder)
    return ""


def main() -> int:
    home = Home(Path(environment.text("SIGNALBOX_HOME") or ROOT / "var").absolute())
    shown = " and ".join(map(str, folders_of(home))) or str(home.root)
    sys.stdout.write(f"This deletes all models, predictions, pictures and keys in {shown}. Type yes to go on: ")
    sys.stdout.flush()
    problem = reset(home, confirmed=sys.stdin.readline().strip() == "yes")
    sys.stdout.write(f"{problem or 'Deleted.'}\n")
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
