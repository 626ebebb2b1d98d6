"""Finds a Chromium for the browser tests, or installs one: `python -m tests.browser.chromium`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

APT_INSTALL = ("apt-get", "install", "-y", "-qq")
# First the one without windows, which takes less processor time.
SHELL = "chromium-headless-shell"
NAMES = (SHELL, "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find() -> str | None:
    """The path of the system's Chromium, else of Playwright's own, else None."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


def install() -> None:
    """By apt where we are root on Debian or Ubuntu, else Playwright's own build."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("Installing Chromium with apt-get", flush=True)
        subprocess.run(["apt-get", "update", "-qq"], check=True)
        if subprocess.run([*APT_INSTALL, SHELL]).returncode:  # Ubuntu has none
            subprocess.run([*APT_INSTALL, "chromium"], check=True)
    else:
        print("Installing Playwright's Chromium", flush=True)
        subprocess.run([sys.executable, "-m", "playwright", "install", "chromium"], check=True)


def main() -> None:
    """Makes sure there is one, and says which."""
    try:
        if find() is None:
            install()
    except subprocess.CalledProcessError as error:
        print(f"No Chromium could be installed ({error}). Install one by hand, then try again.")
        sys.exit(1)
    print(f"Browser for the tests: {find()}")


if __name__ == "__main__":
    main()
