"""Fetch what the site serves itself: MathJax and three typefaces, from npm, checked by hash.

    python docs/vendor.py

The files land in docs/_build/vendor, which git ignores; a second call finds them there and does nothing.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENDOR = Path(__file__).parent / "_build" / "vendor"

PACKAGES = {  # npm package: version, sha256 of its archive, {file in the archive: file on the site}
    "mathjax": (
        "3.2.2",
        "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09",
        {"es5/tex-svg-full.js": "mathjax/tex-svg-full.js", "LICENSE": "mathjax/LICENSE"},
    ),
    "@fontsource-variable/source-serif-4": (
        "5.3.1",
        "8c452853c74be1e43e9fbfe76321c26f4678a2d431e93209ff1d9faec03fd96f",
        {
            "files/source-serif-4-latin-wght-normal.woff2": "fonts/source-serif-4.woff2",
            "files/source-serif-4-latin-wght-italic.woff2": "fonts/source-serif-4-italic.woff2",
            "files/source-serif-4-latin-ext-wght-normal.woff2": "fonts/source-serif-4-ext.woff2",
            "LICENSE": "fonts/source-serif-4-LICENSE",
        },
    ),
    "@fontsource-variable/inter": (
        "5.3.0",
        "d26710dd38e7217484a1d47ee76c024977ec550548876f26d06ed1844af09a14",
        {"files/inter-latin-wght-normal.woff2": "fonts/inter.woff2", "LICENSE": "fonts/inter-LICENSE"},
    ),
    "@fontsource-variable/jetbrains-mono": (
        "5.3.0",
        "996fe6368a480c9ce15d4de22a2682b7c40b403718fee2b15e7272f244fd993f",
        {
            "files/jetbrains-mono-latin-wght-normal.woff2": "fonts/jetbrains-mono.woff2",
            "LICENSE": "fonts/jetbrains-mono-LICENSE",
        },
    ),
}


class VendorError(Exception):
    "A package could not be had: one line that says which, why and what to do."


def _archive(package: str, version: str, folder: str) -> Path:
    "Download `package` as npm's archive into `folder`."
    command = ["npm", "pack", f"{package}@{version}", "--silent", "--pack-destination", folder]
    run = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    archives = list(Path(folder).glob("*.tgz"))
    if run.returncode or len(archives) != 1:
        reason = (run.stderr.strip() or run.stdout.strip() or "no archive came").splitlines()[-1]
        raise VendorError(
            f"npm could not fetch {package}@{version} ({reason}); check the network and run `make docs` again"
        )
    return archives[0]


def _unpack(package: str, version: str, digest: str, files: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = _archive(package, version, folder)
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != digest:
            raise VendorError(f"{package}@{version} has sha256 {found}, expected {digest}; do not use it")
        with tarfile.open(archive) as tar:
            for inside, outside in files.items():
                target = VENDOR / outside
                target.parent.mkdir(parents=True, exist_ok=True)
                part = target.with_name(target.name + ".part")
                part.write_bytes(tar.extractfile(f"package/{inside}").read())
                part.replace(target)


def vendor() -> Path:
    "The folder with everything that PACKAGES lists, fetched where it is missing."
    for package, (version, digest, files) in PACKAGES.items():
        if all((VENDOR / outside).is_file() for outside in files.values()):
            continue
        if not shutil.which("npm"):
            raise VendorError(
                "the site needs npm once, to fetch MathJax and its typefaces: install Node.js with npm "
                "(Debian, Ubuntu: `apt-get install npm`; macOS: `brew install node`) and run `make docs` again"
            )
        _unpack(package, version, digest, files)
    return VENDOR


if __name__ == "__main__":
    try:
        print(vendor())
    except VendorError as error:
        sys.exit(str(error))
