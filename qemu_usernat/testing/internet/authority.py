"""The authority that is kept, so that the image of a guest that trusts it is the same each time.

A new one for each run would mean a new image for each run. Nobody but guests of tests trusts it.
"""

import fcntl
from pathlib import Path

import trustme


def kept_authority(cache: Path) -> trustme.CA:
    """The one in the folder `cache`, made if it is not there; only its owner may read its key.

    Several processes at once wait for each other.
    """
    folder = cache / "authority"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    with (folder / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not certificate.exists():
            made = trustme.CA(organization_name="qemu_usernat testing")
            key.touch(mode=0o600)
            key.write_bytes(made.private_key_pem.bytes())
            certificate.write_bytes(made.cert_pem.bytes())
        return trustme.CA.from_pem(certificate.read_bytes(), key.read_bytes())
